"""How fast and how good the assignment is, against other ways to solve it: `eccos bench assignment`.

Times are given in seconds and in *passes*: the time of one `(cost - quality).min(axis=1)` measured beside each solve.
On a shared machine only the passes, and ratios within one run, mean anything.
"""

import json
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from eccos_integrations import AssignmentProblem, OutcomeTable, Router, solve
from eccos_integrations.assignment import Pacer

REPEATS = 3
MILP_LIMIT_S = 60.0
Family = Callable[[int, int, int], AssignmentProblem]


def limits(n: int, m: int, slack: float = 1.3) -> np.ndarray:
    """Capacity of each model, `slack` times its even share."""
    return np.full(m, np.ceil(slack * n / m))


def synthetic(n: int, m: int, seed: int) -> AssignmentProblem:
    """Dearer models are better on average, queries differ in difficulty; four tightnesses in turn."""
    slack, floor = ((1.6, 1.05), (1.6, 1.0), (1.15, 1.05), (1.15, 1.0))[seed % 4]
    rng = np.random.default_rng(seed)
    skill = np.linspace(-0.15, 0.15, m)
    quality = np.clip(0.65 + skill + rng.normal(0, 0.15, (n, 1)) + rng.normal(0, 0.1, (n, m)), 0, 1)
    cost = 1e-4 * np.geomspace(1, 30, m) * rng.lognormal(0, 0.5, (n, 1)) * rng.lognormal(0, 0.2, (n, m))
    return AssignmentProblem(cost, quality, min_quality=float(quality.mean()) * floor, capacity=limits(n, m, slack))


def real(n: int, m: int, seed: int) -> AssignmentProblem:
    """Forecasts of held-out queries of zeroeval, drawn with replacement and jittered by a thousandth."""
    quality, cost = _zeroeval_forecast()
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(quality), size=n)
    columns = rng.permutation(quality.shape[1])[np.arange(m) % quality.shape[1]]
    quality = np.clip(quality[rows][:, columns] + rng.normal(0, 1e-3, (n, m)), 0, 1)
    cost = cost[rows][:, columns] * rng.lognormal(0, 1e-3, (n, m))
    floor = 0.97 * float(quality.mean(axis=0).max())
    return AssignmentProblem(cost, quality, min_quality=floor, capacity=limits(n, m, m / 2))


def identical(n: int, m: int, seed: int) -> AssignmentProblem:
    """Every query is the same query."""
    one = synthetic(1, m, seed)
    quality, cost = np.tile(one.quality, (n, 1)), np.tile(one.cost_usd, (n, 1))
    return AssignmentProblem(cost, quality, min_quality=float(quality.mean()), capacity=limits(n, m, 1.6))


def equal_quality(n: int, m: int, seed: int) -> AssignmentProblem:
    """All models answer all queries equally well."""
    base = synthetic(n, m, seed)
    return AssignmentProblem(base.cost_usd, np.full((n, m), 0.7), min_quality=0.7, capacity=base.capacity)


def rounded(n: int, m: int, seed: int) -> AssignmentProblem:
    """Quality to one digit, cost to few values: ties everywhere."""
    base = synthetic(n, m, seed)
    cost = np.ceil(base.cost_usd / 1e-3) * 1e-3
    quality = base.quality.round(1)
    return AssignmentProblem(cost, quality, min_quality=float(quality.mean()) * 1.05, capacity=base.capacity)


def duplicates(n: int, m: int, seed: int) -> AssignmentProblem:
    """Every model stands there twice."""
    base = synthetic(n, -(-m // 2), seed)
    quality, cost = np.repeat(base.quality, 2, axis=1)[:, :m], np.repeat(base.cost_usd, 2, axis=1)[:, :m]
    return AssignmentProblem(cost, quality, min_quality=base.min_quality, capacity=limits(n, m, 1.6))


def binary(n: int, m: int, seed: int) -> AssignmentProblem:
    """Quality is known to be right or wrong."""
    base = synthetic(n, m, seed)
    quality = (np.random.default_rng(seed).random((n, m)) < base.quality).astype(float)
    return AssignmentProblem(base.cost_usd, quality, min_quality=0.9, capacity=base.capacity)


def heavy_tail(n: int, m: int, seed: int) -> AssignmentProblem:
    """A few queries cost a thousand times the others."""
    base = synthetic(n, m, seed)
    cost = base.cost_usd * np.random.default_rng(seed).pareto(1.1, (n, 1)).clip(0.01, 1e5)
    return AssignmentProblem(cost, base.quality, min_quality=base.min_quality, capacity=base.capacity)


def attainable(share: float) -> Family:
    """A floor at this share of the best that is reachable without limits."""

    def family(n: int, m: int, seed: int) -> AssignmentProblem:
        base = synthetic(n, m, seed)
        return AssignmentProblem(
            base.cost_usd, base.quality, min_quality=min(1.0, share * float(base.quality.max(axis=1).mean()))
        )

    return family


def barely(n: int, m: int, seed: int) -> AssignmentProblem:
    """The models together carry exactly the batch."""
    base = synthetic(n, m, seed)
    capacity = np.full(m, n // m)
    capacity[: n % m] += 1
    return AssignmentProblem(base.cost_usd, base.quality, min_quality=float(base.quality.mean()), capacity=capacity)


def all_rows(n: int, m: int, seed: int) -> AssignmentProblem:
    """Floors for ten groups, budget, capacity, tokens, time, shares and forbidden pairs at once."""
    base = synthetic(n, m, seed)
    rng = np.random.default_rng(seed)
    tokens, seconds = rng.lognormal(6, 0.5, (n, m)), rng.lognormal(1, 0.3, (n, m))
    groups = [f"g{k}" for k in rng.integers(10, size=n)]
    forbidden = rng.random((n, m)) < 0.05
    forbidden[:, rng.integers(m)] = False
    return AssignmentProblem(
        base.cost_usd,
        base.quality,
        min_quality={label: float(base.quality.mean()) for label in set(groups)},
        groups=groups,
        max_mean_cost_usd=float(base.cost_usd.mean()),
        capacity=limits(n, m, 2),
        loads={
            "tokens": (tokens, np.full(m, 2 * tokens.sum() / m / m)),
            "seconds": (seconds, np.full(m, 2 * seconds.sum() / m / m)),
        },
        min_share=np.full(m, 0.01),
        forbidden=forbidden,
    )


FAMILIES: dict[str, Family] = {
    "synthetic": synthetic,
    "real": real,
    "identical": identical,
    "equal quality": equal_quality,
    "rounded": rounded,
    "duplicates": duplicates,
    "binary": binary,
    "heavy tail": heavy_tail,
    "floor 99.9%": attainable(0.999),
    "floor 100%": attainable(1.0),
    "floor 101%": attainable(1.01),
    "barely feasible": barely,
}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def one_pass(problem: AssignmentProblem) -> float:
    """Seconds of one pass over the problem, median of three."""
    return statistics.median(timed(lambda: (problem.cost_usd - problem.quality).min(axis=1))[0] for _ in range(3))


def highs_lp(problem: AssignmentProblem) -> float:
    """Seconds HiGHS takes for the linear relaxation alone."""
    from eccos_integrations.assignment import relaxed_prices

    return timed(lambda: relaxed_prices(problem))[0]


def pulp_cbc(problem: AssignmentProblem) -> float | None:
    """Seconds of AIOS' own formulation (PuLP and CBC, no limits), where PuLP is installed."""
    try:
        import pulp
    except ImportError:
        return None
    model = pulp.LpProblem("aios", pulp.LpMinimize)
    cells = [(i, j) for i in range(problem.n) for j in range(problem.m)]
    x = pulp.LpVariable.dicts("x", cells, cat="Binary")
    model += pulp.lpSum(float(problem.cost_usd[c]) * x[c] for c in cells)
    model += pulp.lpSum(float(problem.quality[c]) * x[c] for c in cells) >= float(problem.min_quality) * problem.n
    for i in range(problem.n):
        model += pulp.lpSum(x[i, j] for j in range(problem.m)) == 1
    return timed(lambda: model.solve(pulp.PULP_CBC_CMD(msg=False, timeLimit=MILP_LIMIT_S)))[0]


def measure(name: str, family: Family, n: int, m: int, *, gap: float = 1e-4, repeats: int = REPEATS) -> dict[str, Any]:
    """Median over repeats (each its own seed) of one family at one size."""
    seconds, passes, gaps, statuses = [], [], [], []
    for seed in range(repeats):
        problem = family(n, m, seed)
        unit = one_pass(problem)
        took, solution = timed(lambda problem=problem: solve(problem, gap=gap))
        seconds.append(took)
        passes.append(took / statistics.median([unit, one_pass(problem)]))
        gaps.append(solution.gap)
        statuses.append(solution.status)
    return {
        "family": name,
        "n": n,
        "m": m,
        "instances": repeats,
        "median_s": statistics.median(seconds),
        "worst_s": max(seconds),
        "median_passes": statistics.median(passes),
        "worst_passes": max(passes),
        "worst_gap": max((gap for gap in gaps if np.isfinite(gap)), default=None),
        "status": sorted(set(statuses)),
    }


def peak_memory(n: int, m: int) -> float:
    """Peak memory of building and solving, as a multiple of the two input arrays (which are counted)."""
    problem = synthetic(n, m, 0)
    cost, quality = problem.cost_usd, problem.quality
    size = cost.nbytes + quality.nbytes
    tracemalloc.start()
    solve(AssignmentProblem(cost, quality, min_quality=problem.min_quality, capacity=problem.capacity))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return 1 + peak / size


def against_others(n: int, m: int, seeds: int = 3) -> dict[str, Any]:
    """How many times faster than the exact program, the relaxation and the subgradient rule, within one run."""
    ratios: dict[str, list[float]] = {"milp": [], "highs_lp": [], "subgradient": [], "pulp_cbc": []}
    gaps = {"ours": [], "subgradient": []}
    for seed in range(seeds):
        problem = synthetic(n, m, seed)
        ours, solution = timed(lambda problem=problem: solve(problem))
        gaps["ours"].append(solution.gap)
        sub_s, sub = timed(lambda problem=problem: solve(problem, method="subgradient"))
        gaps["subgradient"].append(sub.gap)
        ratios["subgradient"].append(sub_s / ours)
        ratios["highs_lp"].append(highs_lp(problem) / ours)
        exact = timed(lambda problem=problem: solve(problem, method="milp", time_limit_s=MILP_LIMIT_S))
        ratios["milp"].append(exact[0] / ours)
        if (cbc := pulp_cbc(problem)) is not None:
            ratios["pulp_cbc"].append(cbc / ours)
    return {
        "n": n,
        "m": m,
        "times_faster_than": {name: statistics.median(r) for name, r in ratios.items() if r},
        "worst_gap": {name: max(g) for name, g in gaps.items()},
    }


def pacing(m: int) -> dict[str, Any]:
    """Microseconds of one decision of the stream form, forecasts given as lists; best of five runs of 20,000."""
    problem = synthetic(2_000, m, 0)
    pacer = Pacer(problem, solve(problem).prices)
    rows = list(zip(problem.quality.tolist(), problem.cost_usd.tolist(), strict=True)) * 10

    def stream() -> None:
        for quality, cost in rows:
            pacer.decide(quality, cost)

    return {"m": m, "microseconds": 1e6 * min(timed(stream)[0] for _ in range(5)) / len(rows)}


def results() -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything, one measurement at a time."""
    yield "against others", against_others(2_000, 10)
    for n in (100, 1_000, 2_000, 5_000, 20_000, 100_000, 1_000_000):
        repeats = {5_000: 20, 1_000_000: 8}.get(n, 4)
        yield "size", measure("synthetic", synthetic, n, 10, repeats=repeats)
    yield "size", measure("synthetic", synthetic, 100_000, 100)
    for name, family in FAMILIES.items():
        if name != "real" or _zeroeval_path().is_file():
            yield "family", measure(name, family, 100_000, 10)
    yield "all rows", measure("all rows", all_rows, 100_000, 10, gap=1e-3)
    for m in (10, 27, 100):
        yield "pacing", pacing(m)
    yield "memory", {"n": 1_000_000, "m": 10, "peak_over_input": peak_memory(1_000_000, 10)}


def main(*, as_json: bool = False) -> None:
    """Measure and print."""
    console = Console(stderr=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, figures in results():
        console.print(kind, figures)
        found.setdefault(kind, []).append(figures)
    if as_json:
        print(json.dumps(found))
        return
    for kind, rows in found.items():
        table = Table(title=kind, title_justify="left")
        for column in rows[0]:
            table.add_column(column)
        for row in rows:
            table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
        Console().print(table)


def _zeroeval_path() -> Path:
    return Path(os.environ.get("ECCOS_DATA_DIR", "")) / "zeroeval.parquet"


def _zeroeval_forecast() -> tuple[np.ndarray, np.ndarray]:
    if not _CACHE:
        fit, test = OutcomeTable.read(_zeroeval_path()).split(0.5, seed=0)
        forecast = Router.fit(fit, predictor="retrieval").forecast(test.queries)
        _CACHE.append((forecast.quality, forecast.cost_usd))
    return _CACHE[0]


_CACHE: list[tuple[np.ndarray, np.ndarray]] = []


if __name__ == "__main__":
    import sys

    main(as_json="--json" in sys.argv)
