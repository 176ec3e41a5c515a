"""What a wrapper adds to a call: shared by the benchmarks of the frameworks. Times in milliseconds."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from eccos_integrations import ModelPool, Policy, Router, load_sample
from eccos_integrations.serving import Dispatcher

CALLS = 300


def serving() -> tuple[Router, Dispatcher, list[str]]:
    """A fitted router of the bundled sample, a dispatcher with no window, and unseen queries."""
    past, unseen = load_sample().split(0.5, seed=0)
    pool = ModelPool.from_outcomes(past)
    router = Router.fit(past, pool=pool, policy=Policy(min_quality=0.97, relative_to="best"), predictor="hybrid")
    return router, Dispatcher(router, window_s=0.0), unseen.queries


def added_ms(direct: Callable[[int], object], routed: Callable[[int], object]) -> dict[str, float]:
    """Both in turn, so that whatever else the machine does falls on both alike."""
    bare, whole = [], []
    for k in range(CALLS + 20):
        for times, call in ((bare, direct), (whole, routed)):
            since = time.perf_counter()
            call(k)
            times.append((time.perf_counter() - since) * 1e3)
    return _difference(bare[20:], whole[20:])


async def aadded_ms(
    direct: Callable[[int], Awaitable[object]], routed: Callable[[int], Awaitable[object]]
) -> dict[str, float]:
    """As `added_ms`, from an event loop."""
    bare, whole = [], []
    for k in range(CALLS + 20):
        for times, call in ((bare, direct), (whole, routed)):
            since = time.perf_counter()
            await call(k)
            times.append((time.perf_counter() - since) * 1e3)
    return _difference(bare[20:], whole[20:])


def import_s(module: str) -> float:
    """Seconds of an interpreter that imports a module, less those of one that does not; the least of three."""

    def least(source: str) -> float:
        times = []
        for _ in range(3):
            since = time.perf_counter()
            subprocess.run([sys.executable, "-c", source], check=True)
            times.append(time.perf_counter() - since)
        return min(times)

    return round(least(f"import {module}") - least("pass"), 3)


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The least of a few."""
    times = []
    for _ in range(repeats):
        since = time.perf_counter()
        call()
        times.append(time.perf_counter() - since)
    return min(times)


def run(awaitable: Awaitable[dict[str, float]]) -> dict[str, float]:
    """In an event loop of its own."""

    async def main() -> dict[str, float]:
        return await awaitable

    return asyncio.run(main())


def _difference(bare: list[float], whole: list[float]) -> dict[str, float]:
    return {
        "direct_p50_ms": round(statistics.median(bare), 3),
        "routed_p50_ms": round(statistics.median(whole), 3),
        "added_p50_ms": round(statistics.median(whole) - statistics.median(bare), 3),
    }
