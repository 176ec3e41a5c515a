"""Requests sent through a dispatcher, by one process or several, and what came of them."""

import asyncio
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from eccos_integrations import Forecast, ModelPool, OutcomeTable, Policy, Router, load_sample
from eccos_integrations.replay import Faults, ReplayProvider, load_sample_references
from eccos_integrations.replay.log import Entry, violations
from eccos_integrations.serving.dispatch import Dispatcher, Ticket, Usage
from eccos_integrations.serving.limits import open_ledger

REQUESTS = int(os.environ.get("ECCOS_BENCH_REQUESTS", "20000"))
CALLERS = int(os.environ.get("ECCOS_BENCH_CALLERS", "200"))
PROCESSES = int(os.environ.get("ECCOS_BENCH_PROCESSES", "4"))
WINDOW_S = 0.010
SPEED = 40.0  # of the replay: calls of some 40 ms, so that 200 callers are busy
FAULTS = Faults(error_rate=0.05, hang_rate=0.005, slow_rate=0.02, malformed_rate=0.015, cut_rate=0.01, hang_s=0.5)
GIVES_UP = 0.01  # part of the callers, each after a random part of PATIENCE_S
PATIENCE_S = 0.05
POLICY = Policy(min_quality=0.97, relative_to="best")
MODELS = ["Llama-3.1-405B-Inst@sambanova", "Meta-Llama-3.1-70B-Instruct", "claude-3-5-sonnet-20241022",
          "gemini-1.5-flash", "gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18"]  # fmt: skip
# Room for all callers together, not for all of them where the router would send them; one limit of each kind binds.
LIMITS: dict[str, dict[str, int]] = {
    "Llama-3.1-405B-Inst@sambanova": {"max_concurrency": 60},
    "Meta-Llama-3.1-70B-Instruct": {"max_concurrency": 60},
    "claude-3-5-sonnet-20241022": {"max_concurrency": 40, "requests_per_minute": 3_000},
    "gemini-1.5-flash": {"max_concurrency": 60},
    "gpt-4o-2024-08-06": {"max_concurrency": 40, "tokens_per_minute": 2_000_000},
    "gpt-4o-mini-2024-07-18": {"max_concurrency": 60},
}
CAP = 1024  # most output tokens of a call
FORK = multiprocessing.get_context("fork")


@dataclass
class Run:
    """What came of some requests; times in seconds.

    Args:
        name: Of the load.
        n: Requests.
        took_s: All of it.
        answered: Requests with an answer.
        failed: Whose attempts are used up: the error reached the caller.
        cancelled: Whose caller gave up.
        waited_s: From asking for a model to calling it, first attempts.
        lags_s: How late the event loop was at each look.
        cost_usd: Of the answered calls.
        forecast_usd: Of the same.
        quality: Recorded, of the same.
        entries: The provider's log.
        sound: How often each request was answered, by the provider's log.
    """

    name: str
    n: int
    took_s: float = 0.0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    waited_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    cost_usd: float = 0.0
    forecast_usd: float = 0.0
    quality: float = 0.0
    entries: list[Entry] = field(default_factory=list)
    sound: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Run") -> "Run":
        """Two processes that ran side by side."""
        return Run(
            self.name, self.n + other.n, max(self.took_s, other.took_s), self.answered + other.answered,
            self.failed + other.failed, self.cancelled + other.cancelled, self.waited_s + other.waited_s,
            self.lags_s + other.lags_s, self.cost_usd + other.cost_usd, self.forecast_usd + other.forecast_usd,
            self.quality + other.quality, self.entries + other.entries, self.sound + other.sound,
        )  # fmt: skip

    def figures(self, pool: ModelPool) -> dict[str, Any]:
        """What stands in the report."""
        answered = max(self.answered, 1)
        waits = np.percentile(self.waited_s, [50, 99]) * 1e3
        return {
            "load": self.name,
            "requests": self.n,
            "answered": self.answered,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "faulty_calls": sum(bool(entry.fault) or entry.status == 429 for entry in self.entries),
            "violations": sum(sum(each.values()) for each in violations(list(pool), merged(self.entries)).values()),
            "lost": self.n - self.answered - self.failed - self.cancelled,
            "answered_twice": sum(count > 1 for count in self.sound.values()),
            "p50_added_ms": round(float(waits[0]), 2),
            "p99_added_ms": round(float(waits[1]), 2),
            "per_second": round(self.n / self.took_s),
            "loop_lag_max_ms": round(max(self.lags_s, default=0.0) * 1e3, 1),
            "usd_per_1000": round(1e3 * self.cost_usd / answered, 4),
            "forecast_usd_per_1000": round(1e3 * self.forecast_usd / answered, 4),
            "quality": round(self.quality / answered, 4),
        }


def merged(entries: list[Entry]) -> list[Entry]:
    """The logs of several processes as one: their clocks are the machine's."""
    ordered = sorted(entries, key=lambda entry: entry.began)
    began = np.array([entry.began for entry in ordered])
    followers = np.searchsorted(began, [entry.ended for entry in ordered], side="left")
    return [replace(entry, followers=int(after)) for entry, after in zip(ordered, followers, strict=True)]


@dataclass(frozen=True)
class World:
    """Who is asked what: a fitted router, unseen queries and their forecasts."""

    router: Router
    unseen: OutcomeTable
    rows: list[Forecast]

    @classmethod
    def make(cls, *, limited: bool, predictor: str = "hybrid") -> "World":
        """From the bundled sample."""
        past, unseen = load_sample().select(MODELS).split(0.5, seed=0)
        pool = ModelPool([
            model.model_copy(update={"max_output_tokens": CAP, **(LIMITS[model.name] if limited else {})})
            for model in ModelPool.from_outcomes(past)
        ])  # fmt: skip
        router = Router.fit(past, pool=pool, policy=POLICY, predictor=predictor)
        forecast = router.forecast(unseen.queries)
        return cls(router, unseen, [forecast.take(np.array([row])) for row in range(len(unseen))])


async def _load(
    world: World, name: str, uri: str, n: int, callers: int, *, given: bool, speed: float, faults: Faults, seed: int
) -> Run:
    run, queries = Run(name, n), world.unseen.queries
    quality = {model: world.unseen.quality[:, j] for j, model in enumerate(world.unseen.models)}
    provider = ReplayProvider(world.unseen, world.router.pool, load_sample_references(), faults, speed=speed)
    rng = random.Random(seed)  # noqa: S311  # no secret
    gives_up = {k: rng.uniform(0, PATIENCE_S) for k in range(n) if faults.rate and rng.random() < GIVES_UP}
    ledger = open_ledger(uri, world.router.pool)

    async def watch() -> None:
        while True:
            since = time.perf_counter()
            await asyncio.sleep(0.001)
            run.lags_s.append(time.perf_counter() - since - 0.001)

    async def one(dispatcher: Dispatcher, k: int) -> None:
        row, asked = (seed * n + k) % len(queries), time.perf_counter()

        async def call(ticket: Ticket) -> tuple[str, Usage]:
            if ticket.attempt == 1:
                run.waited_s.append(time.perf_counter() - asked)
            answer = await provider.acall(
                ticket.model, queries[row], max_tokens=ticket.max_output_tokens, request_id=f"{seed}:{k}"
            )
            return ticket.model, Usage(answer.input_tokens, answer.output_tokens)

        options = {"forecast": world.rows[row]} if given else {}
        try:
            async with asyncio.timeout(gives_up.get(k)):
                served = await dispatcher.acall(queries[row], call, **options)  # type: ignore[arg-type]
        except TimeoutError:
            run.cancelled += k in gives_up
            run.failed += k not in gives_up
        except Exception:  # noqa: BLE001  # the last attempt's own
            run.failed += 1
        else:
            run.answered += 1
            run.quality += float(quality[served.answer][row])
            run.forecast_usd += served.decision.cost_usd
            run.cost_usd += (served.usage and served.usage.usd(world.router.pool[served.answer])) or 0.0

    async with Dispatcher(world.router, ledger, window_s=WINDOW_S, max_attempts=4, seed=seed) as dispatcher:
        dispatcher.call(queries[0], lambda _: (None, Usage(1, 1)))  # prices are computed once
        watching = asyncio.create_task(watch())
        since = time.perf_counter()

        async def caller(first: int) -> None:
            for k in range(first, n, callers):
                await one(dispatcher, k)

        await asyncio.gather(*(caller(first) for first in range(callers)))
        run.took_s = time.perf_counter() - since
        watching.cancel()
    await ledger.aclose()
    run.entries, run.sound = provider.log, provider.answered
    return run


def in_one(world: World, name: str, uri: str = "memory://", **load: Any) -> Run:
    """One process."""
    return asyncio.run(_load(world, name, uri, REQUESTS, CALLERS, seed=0, **load))


def in_many(world: World, name: str, uri: str, **load: Any) -> Run:
    """Several processes on one store, each with its share of the requests and of the callers."""
    queue = FORK.Queue()

    def work(seed: int) -> None:
        share = partial(_load, world, name, uri, REQUESTS // PROCESSES, CALLERS // PROCESSES, seed=seed)
        queue.put(asyncio.run(share(**load)))

    processes = [FORK.Process(target=work, args=(seed,)) for seed in range(PROCESSES)]
    for process in processes:
        process.start()
    runs = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(runs[1:], runs[0])


@contextmanager
def redis_server() -> Iterator[str | None]:
    """The URI of a Redis of our own; None where it is not installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 10
            while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < until:
                time.sleep(0.01)
            yield f"redis://127.0.0.1:{port}/"
        finally:
            process.kill()
            process.wait()
