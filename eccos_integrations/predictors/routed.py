"""What routing by a forecast realises: the measure that predictors are tuned and chosen by."""

from collections.abc import Sequence

import numpy as np

from eccos_integrations.outcomes import FloatArray

PRICES = 100  # quality prices tried
CLEARLY = 0.9  # times the routed cost: a setting that is cheaper by less is cheaper by luck
FLOORS = (1.0, 0.99, 0.97, 0.95)  # fractions of the best single model's quality


def price_range(cost_usd: FloatArray) -> FloatArray:
    """(P,) quality prices from one that buys the cheapest model to one that buys the best, whatever it costs."""
    prices: FloatArray = float(cost_usd.mean()) * np.concatenate([[0.0], np.geomspace(1e-3, 1e4, PRICES)])
    return prices


def realised(
    quality: FloatArray, cost_usd: FloatArray, outcome: FloatArray, outcome_cost_usd: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean outcome and mean cost of sending each query to argmin cost - price * quality, at each of many prices.

    Args:
        quality: (N, M) forecast of queries the predictor has not seen.
        cost_usd: (N, M) forecast.
        outcome: (N, M) observed quality; cells that were not observed count neither way.
        outcome_cost_usd: (N, M) observed cost; the forecast stands in where there is none.

    Returns:
        Means by price, from the cheapest routing to the best; prices at which nothing chosen was observed are left out.
    """
    paid = np.where(np.isfinite(outcome_cost_usd), outcome_cost_usd, cost_usd)
    rows = np.arange(len(outcome))
    means = []
    for price in price_range(cost_usd):
        chosen = np.argmin(cost_usd - price * quality, axis=1)
        observed = np.isfinite(outcome[rows, chosen])
        if observed.any():
            means.append((outcome[rows, chosen][observed].mean(), paid[rows, chosen][observed].mean()))
    found = np.array(means).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def routed_cost(
    quality: FloatArray,
    cost_usd: FloatArray,
    outcome: FloatArray,
    outcome_cost_usd: FloatArray,
    best: int,
    floors: Sequence[float] = FLOORS,
) -> float:
    """Least cost at which routing realises a floor, as a share of the best single model's; at most 1, mean over floors.

    Args:
        quality: See `realised`.
        cost_usd: See `realised`.
        outcome: See `realised`.
        outcome_cost_usd: See `realised`.
        best: Column of the best single model.
        floors: Fractions of its mean outcome.
    """
    reached, paid = realised(quality, cost_usd, outcome, outcome_cost_usd)
    own_cost = np.where(np.isfinite(outcome_cost_usd[:, best]), outcome_cost_usd[:, best], cost_usd[:, best])
    observed = np.isfinite(outcome[:, best])
    if not observed.any() or own_cost[observed].mean() <= 0:  # where calls are free, nothing can be saved
        return 1.0
    own, own_paid = outcome[observed, best].mean(), own_cost[observed].mean()
    shares = [min(1.0, paid[reached >= floor * own].min(initial=np.inf) / own_paid) for floor in floors]
    return float(np.mean(shares))
