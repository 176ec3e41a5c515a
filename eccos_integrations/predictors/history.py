"""A table of outcomes as what predictors learn: quality and spend of every model, on scales that can be averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import MEASURES, FloatArray, OutcomeTable, column_means
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors.kinship import ENOUGH, kinship

Arrays = dict[str, NDArray[Any]]

QUALITY, SPEND = 0, 1  # the two things forecast, an axis of every (N, 2, M) array
# A model's own mean counts fully only beside this many outcomes of its kin's mean.
PRIOR_STRENGTH = 4.0
# Added to spend as a share of the model's typical spend before the logarithm: an empty answer is short, not -inf.
LEAST_SHARE = 0.01
# Where no input tokens were ever recorded: the usual English average.
TOKENS_PER_BYTE = 0.25


@dataclass(frozen=True, eq=False)
class History:
    """What a predictor learns from: N past queries x M models.

    `spend` is what a call uses up, in the unit that turns into money: output tokens for a model with prices whose
    tokens were observed, USD for any other.

    Args:
        x: (N, D) what the queries look like.
        values: (N, 2, M) quality, and the logarithm of spend as a share of the model's typical spend; NaN = not
            observed.
        quality: (N, M) observed quality.
        cost_usd: (N, M) observed cost.
        input_tokens: (N, M) forecast.
    """

    x: FloatArray
    values: FloatArray
    quality: FloatArray
    cost_usd: FloatArray
    input_tokens: FloatArray


def byte_lengths(queries: Sequence[str]) -> FloatArray:
    """(N,) lengths of texts in bytes."""
    return np.array([len(query.encode("utf-8", "surrogatepass")) for query in queries], dtype=np.float64)


def columns_of(table: OutcomeTable, models: list[str]) -> OutcomeTable:
    """The table with exactly these columns, unobserved where it lacks one."""
    measures = {name: measured(table, name, models) for name in MEASURES}
    return OutcomeTable(table.query_ids, table.queries, models, tasks=table.tasks, **measures)


def measured(table: OutcomeTable, measure: str, models: list[str]) -> FloatArray:
    """(N, M) what was measured of these models; NaN where the table lacks one."""
    columns = {name: j for j, name in enumerate(table.models)}
    array, unobserved = getattr(table, measure), np.full(len(table), np.nan)
    return np.column_stack([array[:, columns[name]] if name in columns else unobserved for name in models])


def spent_in_usd(table: OutcomeTable, pool: ModelPool) -> NDArray[np.bool_]:
    """(M,) whether a model's spend is counted in USD; columns of the table as in the pool."""
    counts_tokens = np.isfinite(table.output_tokens).any(axis=0)
    counts_cost = np.isfinite(table.cost_usd).any(axis=0)
    has_prices = np.array([model.has_prices for model in pool])
    in_usd: NDArray[np.bool_] = ~has_prices | (~counts_tokens & counts_cost)
    return in_usd


def spend_of(table: OutcomeTable, models: list[str], in_usd: NDArray[np.bool_]) -> FloatArray:
    """(N, M) what each call used up."""
    return np.where(in_usd, measured(table, "cost_usd", models), measured(table, "output_tokens", models))


def values_of(table: OutcomeTable, models: list[str], known: Arrays) -> FloatArray:
    """(N, 2, M): see `History.values`; of what is known, spend_in_usd and typical_spend matter."""
    spend, typical = spend_of(table, models, known["spend_in_usd"]), known["typical_spend"]
    share = np.divide(spend, typical, out=np.full(spend.shape, np.nan), where=typical > 0)
    share = np.where((typical <= 0) & np.isfinite(spend), 1.0, share)
    return np.stack([measured(table, "quality", models), np.log(share + LEAST_SHARE)], axis=1)


def priors(table: OutcomeTable, pool: ModelPool) -> Arrays:
    """What is known of each model before any query is looked at.

    Returns:
        spend_in_usd (M,), typical_spend (M,), kin (M, M), kin_mean (2, M) what a model's kin do on average, total and
        count (2, M) of the model's own values, input_tokens (2, M) a fixed part and a part per byte, latency_s (M,).
    """
    in_usd = spent_in_usd(table, pool)
    spend = spend_of(table, pool.names, in_usd)
    input_tokens = input_token_rates(table)
    means, seen = column_means(spend, unobserved=0.0), np.isfinite(spend).sum(axis=0)
    kin = kinship(pool, means, in_usd, np.isfinite(table.quality).sum(axis=0))
    typical = np.empty(len(pool))
    for unit in (True, False):  # USD and tokens have means of their own
        of_unit = in_usd == unit
        expected = _mean_of_kin(kin * of_unit, means, seen * of_unit)
        if not (seen * of_unit).any():  # none of these was observed, but another kind of model may have been
            other = column_means(table.cost_usd if unit else table.output_tokens)
            expected = np.full(len(pool), np.nanmean(other) if np.isfinite(other).any() else np.nan)
        shrunk = (means * seen + PRIOR_STRENGTH * expected) / (seen + PRIOR_STRENGTH)
        typical = np.where(of_unit, shrunk, typical)
    if np.isnan(typical).any():
        model = pool.names[int(np.argmax(np.isnan(typical)))]
        raise ConfigError(f"cost_usd: model {model!r} has prices, but no output_tokens were observed to apply them to; "
                          "add tokens or costs to the table")  # fmt: skip
    values = values_of(table, pool.names, {"spend_in_usd": in_usd, "typical_spend": typical})
    observed = np.isfinite(values)
    count = observed.sum(axis=0).astype(np.float64)
    total = np.where(observed, values, 0.0).sum(axis=0)
    return {
        "spend_in_usd": in_usd,
        "typical_spend": typical,
        "kin": kin,
        "kin_mean": mean_of_kin(kin, total, count),
        "total": total,
        "count": count,
        "input_tokens": input_tokens,
        "latency_s": column_means(table.latency_s),
    }


def mean_of_kin(kin: FloatArray, total: FloatArray, count: FloatArray) -> FloatArray:
    """(2, M) means of the kin's own means; of all where a model has no kin with outcomes."""
    means = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return np.stack([_mean_of_kin(kin, mean, seen) for mean, seen in zip(means, count, strict=True)])


def _mean_of_kin(kin: FloatArray, means: FloatArray, seen: FloatArray) -> FloatArray:
    """(M,) weighted means of those that were seen; their plain mean where none of them is kin.

    Each counts among its kin as far as it was seen itself: drawn to the others alone, two models of which little is
    known would change places.
    """
    weight = kin * (seen > 0)
    total = weight.sum(axis=1)
    overall = means[seen > 0].mean() if (seen > 0).any() else 0.0
    of_others = np.divide(weight @ means, total, out=np.full(len(total), overall), where=total > 0)
    trust = seen / (seen + ENOUGH)
    own = trust / max(float(trust.sum()), 1e-12)
    mean: FloatArray = own * means + (1 - own) * of_others
    return mean


def input_token_rates(table: OutcomeTable) -> FloatArray:
    """(2, M): input tokens of a query are the first row plus the second times its length in bytes."""
    from scipy.optimize import nnls

    lengths = byte_lengths(table.queries)
    rates = np.full((2, len(table.models)), np.nan)
    for j in range(len(table.models)):
        known = np.isfinite(table.input_tokens[:, j])
        if known.any():
            rates[:, j] = nnls(np.column_stack([np.ones(known.sum()), lengths[known]]), table.input_tokens[known, j])[0]
    seen = np.isfinite(rates[0])
    rates[:, ~seen] = rates[:, seen].mean(axis=1, keepdims=True) if seen.any() else [[0.0], [TOKENS_PER_BYTE]]
    return rates
