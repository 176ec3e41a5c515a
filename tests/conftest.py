"""Small tables and one fitted router that many tests share. All are read-only: make your own to change one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eccos_integrations import OutcomeTable, Policy, Router, load_sample
from tests.redis_server import RedisServer

# USD per million input and output tokens.
PRICES = {"tiny": (0.1, 0.4), "small": (0.5, 1.5), "medium": (3.0, 15.0), "large": (10.0, 30.0)}
WORDS = {
    "animals": ["okapi", "axolotl", "pangolin", "quokka", "numbat", "tardigrade", "capybara", "narwhal"],
    "stones": ["jacinth", "chrysoprase", "rhodonite", "labradorite", "obsidian", "malachite", "zircon", "onyx"],
    "winds": ["sirocco", "mistral", "zephyr", "chinook", "tramontane", "harmattan", "levanter", "pampero"],
}


def make_table(seed: int, per_task: int) -> OutcomeTable:
    """Dearer models are better, longer queries are harder, tasks are told apart by their words."""
    rng = np.random.default_rng(seed)
    tasks = [task for task in WORDS for _ in range(per_task)]
    queries = [f"{i}: " + " ".join(rng.choice(WORDS[task], rng.integers(3, 12))) for i, task in enumerate(tasks)]
    skill = np.linspace(0.5, 0.95, len(PRICES))
    hard = np.array([len(query.split()) / 12 for query in queries])[:, None]
    shape = (len(tasks), len(PRICES))
    input_tokens = np.broadcast_to(np.array([len(query) for query in queries])[:, None], shape) // 4 + 5
    output_tokens = rng.integers(20, 400, shape)
    input_usd, output_usd = np.array(list(PRICES.values())).T
    return OutcomeTable(
        query_ids=[f"id-{i}" for i in range(len(tasks))],
        queries=queries,
        models=list(PRICES),
        quality=rng.random(shape) < skill - 0.4 * hard * (1 - skill),
        cost_usd=(input_tokens * input_usd + output_tokens * output_usd) / 1e6,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        latency_s=0.2 + output_tokens / 100,
        tasks=tasks,
    )


@pytest.fixture(scope="session")
def prices() -> dict[str, tuple[float, float]]:
    """The prices behind `small_table`: USD per million input and output tokens, by model."""
    return PRICES


@pytest.fixture(scope="session")
def small_table() -> OutcomeTable:
    """60 queries x 4 models, three tasks, all observed; costs follow exactly from tokens and `prices`."""
    return make_table(seed=0, per_task=20)


@pytest.fixture(scope="session")
def sample() -> OutcomeTable:
    """The bundled sample: 1,000 queries x 10 models."""
    return load_sample()


@pytest.fixture(scope="session")
def sample_parts(sample: OutcomeTable) -> tuple[OutcomeTable, OutcomeTable]:
    """What `fitted_router` has seen (120 queries), and the rest."""
    return sample.split(0.12, seed=0)


@pytest.fixture(scope="session")
def fitted_router(sample_parts: tuple[OutcomeTable, OutcomeTable]) -> Router:
    """A retrieval router of the sample's ten models."""
    policy = Policy(min_quality=0.95, relative_to="best")
    return Router.fit(sample_parts[0], policy=policy, predictor="retrieval", seed=0)


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes | None]]:
    """Every path under a folder, hidden ones too, with its bytes: equal before and after means untouched."""

    def under(folder: Path) -> dict[str, bytes | None]:
        return {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
        }

    return under


@pytest.fixture
def own_server(tmp_path):
    """A Redis that its test may kill."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def lasting_server(tmp_path):
    """One that keeps its records when it is killed."""
    server = RedisServer(tmp_path, "--appendonly", "yes")
    yield server
    server.kill()
