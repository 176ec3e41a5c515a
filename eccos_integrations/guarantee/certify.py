"""Which price of quality keeps a floor on outcomes, not on forecasts, and how sure that is."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from eccos_integrations.errors import ConfigError
from eccos_integrations.guarantee.bounds import BOUNDS, Flags, last_pass
from eccos_integrations.guarantee.evidence import Evidence, Routed, price_grid
from eccos_integrations.outcomes import FloatArray

STEP = 0.001  # of the lower bound
GRID = 0.005  # of the largest floor
# With fewer rows than this a certificate saves much less than it could.
FLOORS, ROWS = (0.90, 0.95, 0.98), (500, 1000, 2000)


@dataclass(frozen=True, repr=False)
class Guarantee:
    """What is certain about the mean quality of the queries to come, as long as they are like those it was made from.

    The claim: that a price is certified *and* the mean quality it brings over all such queries is below the floor has
    probability at most 1 - confidence. It is about the forecasts as they were, with every query going where the price
    sends it.

    Args:
        certified: Whether a price was found. If not, the best single model is used.
        floor: As the policy gave it: a fraction of the best single model's mean quality, or a mean quality.
        relative_to: The best single model, or None for an absolute floor.
        confidence: Of the claim.
        bound: `"wsr"`: betting, right for every distribution and number of rows. `"clt"`: Student's t, asymptotic.
            `"crossfit"`: the same, with the fit part's out-of-fold rows as evidence too; approximate.
        lower_bound: Largest floor that passes the same test at this price, NaN if not certified. It says how much room
            there is, and is no claim of its own.
        sample_size: Rows the test at this price could use.
        price: USD per unit of quality, NaN if not certified.
        largest_floor: If not certified, the largest floor that is, NaN if none. Found by looking at the same rows: to
            claim it, certify it on others.
        message: All this in words.
        voided: Why it does not hold for this plan or any more, "" if it holds.
    """

    VOIDS: ClassVar[tuple[str, ...]] = (
        "a load row binds, so that queries go elsewhere than the price sends them",
        "a plan has another floor, a budget, a forbidden pair or a switch cost",
        "a model was added, removed or has another price",
        "the forecasts have changed since",
        "the outcomes have drifted away from the forecasts",
    )

    certified: bool
    floor: float
    relative_to: str | None
    confidence: float
    bound: str
    lower_bound: float
    sample_size: int
    price: float
    largest_floor: float
    message: str
    voided: str = ""

    def __repr__(self) -> str:
        state = "voided" if self.voided else "certified" if self.certified else "not certified"
        of = "" if self.relative_to is None else f" of {self.relative_to}"
        return (
            f"Guarantee({state}, floor={self.floor:g}{of}, confidence={self.confidence:g}, bound={self.bound!r}, "
            f"{self.sample_size} rows, price={self.price:.4g})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with None for NaN."""
        values = asdict(self).items()
        return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The guarantee that `to_dict` was taken from."""
        numbers = ("lower_bound", "price", "largest_floor")
        return cls(**dict(values) | {name: math.nan for name in numbers if values[name] is None})


def certify(
    fit: Evidence,
    calibration: Evidence,
    *,
    best: int | None,
    floor: float,
    confidence: float,
    bound: str = "wsr",
    seed: int = 0,
    relative_to: str = "best",
) -> Guarantee:
    """Find the cheapest price of quality that keeps the floor on outcomes.

    Prices and their order, safest first, come from the fit part alone. Each is then tested on the calibration part at
    the full level until one fails; the last that passed is certified. Tested is the mean over queries of
    `quality of the chosen - floor * quality of the best`, so that a query which is hard for all does not blur it.

    Rows with unobserved outcomes: a row helps to test a price if every model that the price sends any row to was
    observed on it, and so was the best. That is right where being observed has nothing to do with the outcome. A model
    observed on less than half of the rows counts at its worst where it was not, which is right in any case.

    Args:
        fit: The part the predictor was fitted on, each row forecast by one that has not seen it.
        calibration: Independent draws from the queries the claim is about, unseen by the predictor.
        best: Column of the frozen best single model for a relative floor, None for an absolute one.
        floor: 0..1.
        confidence: Between 0 and 1.
        bound: `"wsr"`, `"clt"` or `"crossfit"`, see `Guarantee`.
        seed: Of the order in which rows are bet on. The rows given in another order change nothing.
        relative_to: Name of the best single model.

    Raises:
        ConfigError: An argument is out of range, or the parts have different models.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> quality = np.tile([0.8, 0.9], (800, 1))
        >>> outcome = (rng.random((800, 2)) < quality).astype(float)
        >>> part = Evidence(quality, np.tile([1e-4, 1e-3], (800, 1)), outcome, np.full((800, 2), np.nan))
        >>> certify(part, part, best=1, floor=0.8, confidence=0.95).certified
        True
    """
    _check(fit, calibration, best=best, floor=floor, confidence=confidence, bound=bound)
    test, pools_fit = BOUNDS[bound]
    prices = price_grid(fit)
    known = Routed.observed(fit, prices, best)
    tested = Routed.provable(fit.joined(calibration) if pools_fit else calibration, prices, best).shuffled(seed)

    def passed(columns: list[int], floors: FloatArray) -> Flags:
        _, spread = known.moments(columns, floors)
        return test(tested.gains(columns, floors), floors, 1 - confidence, spread)

    order = known.safest_first(floor)
    last = last_pass(passed(order, np.full(len(order), floor)))
    lower_bound = price = largest_floor = math.nan
    if last >= 0:
        price = float(prices[order[last]])
        higher = np.round(np.arange(floor, 2, STEP), 9)
        for floors in _few(higher):  # the first failure ends it, mostly near by
            room = last_pass(passed([order[last]] * len(floors), floors))
            lower_bound = float(floors[room]) if room >= 0 else lower_bound
            if room < len(floors) - 1:
                break
    elif order:
        lower = np.round(np.arange(GRID, floor - GRID / 2, GRID), 9)[::-1]
        for floors in _few(lower):  # the first pass ends it
            passes = floors[passed([known.safest_first(each)[0] for each in floors], floors)]
            if len(passes):
                largest_floor = float(passes[0])
                break
    rows = int(np.isfinite(tested.quality[:, order[max(last, 0)]]).sum()) if order else 0

    found = Guarantee(
        certified=last >= 0,
        floor=floor,
        relative_to=None if best is None else relative_to,
        confidence=confidence,
        bound=bound,
        lower_bound=lower_bound,
        sample_size=rows,
        price=price,
        largest_floor=largest_floor,
        message="",
    )
    return replace(found, message=_message(found))


def _few(floors: FloatArray) -> list[FloatArray]:
    return [floors[start : start + 40] for start in range(0, len(floors), 40)]


def _message(found: Guarantee) -> str:
    of = "" if found.relative_to is None else f" of {found.relative_to}'s"
    sure = f"{found.confidence:g} confidence" + (" (approximate)" if found.bound == "crossfit" else "")
    if found.certified:
        text = (
            f"certified with {sure}: mean quality at least {found.floor:g}{of}, by {found.sample_size} held-out rows "
            f"that would do for {found.lower_bound:.3f}"
        )
    else:
        instead = "no floor is" if math.isnan(found.largest_floor) else f"{found.largest_floor:g}{of} is"
        text = (
            f"not certified with {sure}: no price keeps a mean quality of {found.floor:g}{of} surely enough on "
            f"{found.sample_size} held-out rows, so the best single model is used; {instead} certified by them"
        )
    wanted = round(float(np.exp(np.interp(found.floor, FLOORS, np.log(ROWS)))), -1)
    few = f"; few rows for this floor, about {wanted:.0f} would save more" if found.sample_size < wanted else ""
    return text + few


def _check(
    fit: Evidence, calibration: Evidence, *, best: int | None, floor: float, confidence: float, bound: str
) -> None:
    if not 0 <= floor <= 1:
        raise ConfigError(f"floor: {floor}; give a number from 0 to 1")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence: {confidence}; give a number between 0 and 1, such as 0.95")
    if bound not in BOUNDS:
        raise ConfigError(f"bound: {bound!r}; give one of {list(BOUNDS)}")
    models = fit.quality.shape[1]
    if calibration.quality.shape[1] != models:
        raise ConfigError(
            f"calibration: {calibration.quality.shape[1]} models, the fit part has {models}; give the same"
        )
    if best is not None and not 0 <= best < models:
        raise ConfigError(f"best: {best} is no column of {models} models; give one of theirs, or None")
