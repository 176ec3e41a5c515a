"""The dispatcher under load, against a provider that keeps books of its own: `eccos bench serving`.

200 callers send 20,000 requests to 6 replayed models whose limits bind, one call in ten goes wrong, one caller in a
hundred gives up. What the provider's log says counts: requests above a limit, answered twice, never answered. Then
the same from 4 processes on one Redis, and both without anything to wait for, which is the throughput.

Environment: ECCOS_BENCH_REQUESTS (20000), ECCOS_BENCH_CALLERS (200), ECCOS_BENCH_PROCESSES (4).
"""

import gc
import json
import math
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.serving_parts.load import (
    CALLERS,
    FAULTS,
    PROCESSES,
    REQUESTS,
    SPEED,
    WINDOW_S,
    World,
    in_many,
    in_one,
    redis_server,
)
from eccos_integrations.replay import Faults
from eccos_integrations.serving.greedy import place

COUNTS = ("answered", "failed", "cancelled", "faulty_calls", "violations", "lost", "answered_twice")
TIMES = ("p50_added_ms", "p99_added_ms", "per_second", "loop_lag_max_ms", "usd_per_1000", "forecast_usd_per_1000",
         "quality")  # fmt: skip
PLACING = ("place_p50_ms", "place_max_ms")


def joint(world: World) -> dict[str, Any]:
    """What the joint plan of the unseen queries would cost and reach, without limits: the yardstick."""
    plan = world.router.plan(world.unseen.queries)
    rows = np.arange(len(world.unseen))
    table = world.unseen.select(world.router.models)
    return {
        "load": "joint plan, no limits",
        "usd_per_1000": round(1e3 * float(table.cost_usd[rows, plan.assignment].mean()), 4),
        "forecast_usd_per_1000": round(1e3 * plan.mean_cost_usd, 4),
        "quality": round(float(table.quality[rows, plan.assignment].mean()), 4),
    }


def repair(n: int = 200, m: int = 10) -> dict[str, Any]:
    """What a window's placing takes where half of the models are nearly full: the median and the worst of 200."""
    rng, times = np.random.default_rng(0), []
    for _ in range(200):
        cost, tokens = rng.lognormal(0, 1, (n, m)), rng.uniform(100, 1000, (n, m))
        slots = np.where(np.arange(m) < m // 2, rng.integers(1, n // m, m), n)
        free = np.where(np.arange(m) % 3 == 0, 5_000.0, np.inf)
        since = time.perf_counter()
        place(cost, tokens, slots.astype(np.float64), free)
        times.append((time.perf_counter() - since) * 1e3)
    return {
        "load": f"placing {n} queries on {m} models",
        "place_p50_ms": round(float(np.median(times)), 2),
        "place_max_ms": round(max(times), 2),
    }


def measure() -> list[dict[str, Any]]:
    """All loads."""
    limited, free = World.make(limited=True), World.make(limited=False)
    pool = limited.router.pool
    busy: dict[str, Any] = {"speed": SPEED, "faults": FAULTS}
    idle: dict[str, Any] = {"speed": math.inf, "faults": Faults(), "given": True}
    found = [joint(limited)]
    gc.collect()
    gc.freeze()  # what was fitted stays: looking through it again and again would hold up the event loop
    roomy = in_one(free, "memory, no limits, forecasts given", given=True, **busy)
    found.append(roomy.figures(free.router.pool))
    found.append(in_one(limited, "memory, forecasts given", given=True, **busy).figures(pool))
    found.append(in_one(limited, "memory, from text", given=False, **busy).figures(pool))
    found.append(in_one(free, "memory, nothing to wait for", **idle).figures(free.router.pool))
    for name, world, load in (
        (f"{PROCESSES} processes on Redis, forecasts given", limited, {"given": True, **busy}),
        (f"{PROCESSES} processes on Redis, from text", limited, {"given": False, **busy}),
        (f"{PROCESSES} processes on Redis, nothing to wait for", free, idle),
    ):
        with redis_server() as uri:
            if uri is not None:
                found.append(in_many(world, name, uri, **load).figures(world.router.pool))
    return [*found, repair()]


def main(*, as_json: bool = False) -> None:
    """Measure and report."""
    found = measure()
    if as_json:
        print(json.dumps(found))
        return
    title = f"{REQUESTS} requests, {CALLERS} callers, window {WINDOW_S * 1e3:.0f} ms"
    Console().print(
        _table(title, found, COUNTS), _table("time and money", found, TIMES), _table("windows", found, PLACING)
    )


def _table(title: str, found: list[dict[str, Any]], names: tuple[str, ...]) -> Table:
    table = Table("load", title=title)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in found:
        if any(name in row for name in names):
            table.add_row(row["load"], *(str(row.get(name, "")) for name in names))
    return table


if __name__ == "__main__":
    main()
