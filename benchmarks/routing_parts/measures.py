"""What a way of routing did on unseen queries, and how two ways differ."""

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.routing_parts.ways import Way
from eccos_integrations import Forecast, OutcomeTable
from eccos_integrations.evaluation.baselines import one_model
from eccos_integrations.evaluation.curve import ROUNDING, TARGETS, Curve
from eccos_integrations.evaluation.metrics import realise
from eccos_integrations.history import best_single

LEAST_CHANCE = 1e-3  # log-loss is taken of forecasts clipped to this and 1 minus this
DECISIONS = 200

Figures = dict[str, Any]


def measure(way: Way, train: OutcomeTable, test: OutcomeTable, seed: int, *, timings: bool) -> Figures:
    """One way on one split.

    Args:
        way: Not fitted yet.
        train: The past.
        test: The unseen queries.
        seed: Of the fit.
        timings: Whether to measure latency and memory too.
    """
    fitted = watched(lambda: way.fit(train, seed))
    best = realise(test, one_model(test, best_single(train)))
    forecast = way.forecast(test.queries)
    floors = [at_floor(way, floor, test, best.mean_quality, best.mean_cost_usd, forecast) for floor in TARGETS]
    figures: Figures = {
        "M": Curve.of(way.settings(test.queries), test).cost_share(best),
        "floors": floors,
        "log_loss": None if forecast is None else log_loss(forecast, test),
        "fit_s": fitted["s"],
    }
    if timings:
        figures |= {"fit_mb": fitted["mb"], **latency(way.decide, test.queries)}
    return figures


def at_floor(
    way: Way, floor: float, test: OutcomeTable, best_quality: float, best_cost_usd: float, forecast: Forecast | None
) -> Figures:
    """What the setting fixed on past outcomes realised, and what was forecast of the chosen."""
    chosen = way.choose(test.queries, floor)
    realised = realise(test, chosen)
    figures = {
        "floor": floor,
        "quality_share": realised.mean_quality / best_quality,
        "cost_share": realised.mean_cost_usd / best_cost_usd,
        "missed": bool(realised.mean_quality < floor * best_quality - ROUNDING),
    }
    if forecast is not None:
        rows = np.arange(len(test))
        figures["calibration"] = float(forecast.quality[rows, chosen].mean()) - realised.mean_quality
        figures["cost_bias"] = float(forecast.cost_usd[rows, chosen].mean()) / realised.mean_cost_usd - 1
    return figures


def log_loss(forecast: Forecast, test: OutcomeTable) -> float:
    """Mean over all cells of the cross-entropy, in nats."""
    chance = np.clip(forecast.quality, LEAST_CHANCE, 1 - LEAST_CHANCE)
    loss = test.quality * np.log(chance) + (1 - test.quality) * np.log(1 - chance)
    return -float(np.nanmean(loss))


def latency(decide: Callable[[str], Any], queries: Sequence[str], decisions: int = DECISIONS) -> Figures:
    """Milliseconds of one decision from text, warm. Every text is new, so that no cache answers."""
    texts = [f"({i}) {queries[i % len(queries)]}" for i in range(decisions + 10)]
    seconds = []
    for text in texts:
        start = time.perf_counter()
        decide(text)
        seconds.append(time.perf_counter() - start)
    p50, p99 = 1e3 * np.quantile(seconds[10:], [0.5, 0.99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def watched(run: Callable[[], Any]) -> Figures:
    """Seconds, and the growth of resident memory to its peak in MB (Linux; None elsewhere)."""
    resettable = Path("/proc/self/clear_refs")
    if os.access(resettable, os.W_OK):
        resettable.write_text("5", encoding="ascii")  # the peak is counted anew from here
    before = resident_mb("VmRSS")
    start = time.perf_counter()
    run()
    took = time.perf_counter() - start
    return {"s": took, "mb": None if before is None else resident_mb("VmHWM") - before}


def resident_mb(field: str) -> Any:
    """VmRSS or VmHWM (the peak) of this process in MB; None where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text(encoding="ascii")) if status.exists() else None
    return None if found is None else int(found[1]) / 1024


def summary(way: Way, seeds: Sequence[Figures]) -> Figures:
    """Means over seeds; errors of means are standard errors over seeds. Signed and absolute, where both tell."""
    share = np.array([figures["M"] for figures in seeds])
    floors = [floor for figures in seeds for floor in figures["floors"]]
    summed: Figures = {
        "way": way.name,
        "encoder": way.encoder,
        "baseline": way.baseline,
        "M": float(share.mean()),
        "M_error": standard_error(share),
        "M_by_seed": share.tolist(),
        **{name: float(np.mean([floor[name] for floor in floors])) for name in ("quality_share", "cost_share")},
        "miss_rate": float(np.mean([floor["missed"] for floor in floors])),
        "floors": [
            {"floor": at, "miss_rate": mean_of("missed", at, floors)}
            | {name: mean_of(name, at, floors) for name in ("quality_share", "cost_share")}
            for at in TARGETS
        ],
        "log_loss": None if seeds[0]["log_loss"] is None else float(np.mean([f["log_loss"] for f in seeds])),
        "fit_s": float(np.mean([figures["fit_s"] for figures in seeds])),
        **{name: seeds[0].get(name) for name in ("fit_mb", "p50_ms", "p99_ms")},
    }
    for name in ("calibration", "cost_bias"):
        known = [floor[name] for floor in floors if name in floor]
        summed[name] = float(np.mean(known)) if known else None
        summed[f"{name}_abs"] = float(np.mean(np.abs(known))) if known else None
        summed[f"{name}_by_seed"] = [
            float(np.mean([floor[name] for floor in figures["floors"]])) for figures in seeds if known
        ]
    return summed


def mean_of(name: str, at: float, floors: Sequence[Figures]) -> float:
    """Mean of a figure over the seeds at one floor."""
    return float(np.mean([floor[name] for floor in floors if floor["floor"] == at]))


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean; None of a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def difference(ours: Figures, other: Figures) -> Figures:
    """Of M, paired over seeds: ours minus the other's; relative to the other's mean."""
    paired = np.array(ours["M_by_seed"]) - np.array(other["M_by_seed"])
    return {
        "way": ours["way"],
        "encoder": ours["encoder"],
        "other": other["way"],
        "other_encoder": other["encoder"],
        "difference": float(paired.mean()),
        "error": standard_error(paired),
        "relative": float(paired.mean()) / other["M"],
        "seeds_better": int((paired < 0).sum()),
    }
