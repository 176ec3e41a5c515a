"""How long the steps of a decision take: `make bench`. Compare runs of one machine, not figures of two."""

import subprocess
import sys

import pytest

from eccos_integrations import Policy, Router, load_sample
from eccos_integrations.encoders import LexicalEncoder

PAST, UNSEEN = load_sample().split(0.7, seed=0)
POLICY = Policy(min_quality=0.97, relative_to="best")


@pytest.fixture(scope="module")
def router() -> Router:
    """Fitted once for the module."""
    return Router.fit(PAST, policy=POLICY, predictor="retrieval")


def test_import(benchmark):
    """A fresh process that imports the package."""
    benchmark.pedantic(
        lambda: subprocess.run([sys.executable, "-c", "import eccos_integrations"], check=True), rounds=5
    )


def test_encode_one_query(benchmark):
    """Text to vector, default encoder, warm."""
    encoder = LexicalEncoder().fit(PAST.queries)
    benchmark(encoder.encode, UNSEEN.queries[:1])


@pytest.mark.parametrize("predictor", ["prior", "retrieval", "trained"])
def test_fit(benchmark, predictor):
    """700 queries x 10 models, five folds and the fit itself."""
    benchmark.pedantic(lambda: Router.fit(PAST, policy=POLICY, predictor=predictor), rounds=2)


def test_forecast_1000_queries(benchmark, router):
    """Ten models."""
    queries = load_sample().queries
    benchmark(router.forecast, queries)


def test_route_one_query(benchmark, router):
    """From text to decision, warm."""
    router.route(UNSEEN.queries[0])
    benchmark(router.route, UNSEEN.queries[1])


def test_plan_300_queries(benchmark, router):
    """Forecast, one joint solve, 300 decisions."""
    benchmark(router.plan, UNSEEN.queries)


def test_save_and_load(benchmark, router, tmp_path):
    """To disk and back."""

    def there_and_back() -> Router:
        router.save(tmp_path / "router")
        return Router.load(tmp_path / "router")

    benchmark(there_and_back)
