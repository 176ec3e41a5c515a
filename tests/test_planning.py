"""From policy and forecast to the rows of an assignment."""

import numpy as np
import pytest

from eccos_integrations import ConfigError, Forecast, Model, ModelPool, OutcomeTable, Policy, Router
from eccos_integrations.planning import assignment_problem, too_long


def forecast(n: int = 4, **arrays: object) -> Forecast:
    """n equal queries on a slow and a fast model, 100 tokens in, 50 out."""
    shape = (n, 2)
    given = {
        "quality": np.tile([0.9, 0.5], (n, 1)),
        "cost_usd": np.tile([0.01, 0.001], (n, 1)),
        "input_tokens": np.full(shape, 100.0),
        "output_tokens": np.full(shape, 50.0),
        "latency_s": np.tile([4.0, 1.0], (n, 1)),
    }
    return Forecast(["slow", "fast"], **{**given, **arrays})


def pool(**slow: object) -> ModelPool:
    return ModelPool([Model(name="slow", **slow), Model(name="fast")])


def test_without_a_deadline_the_pools_rates_do_not_count():
    limited = pool(max_concurrency=1, requests_per_minute=1, tokens_per_minute=1)
    problem = assignment_problem(forecast(), Policy(min_quality=0.5), limited, "slow")
    assert problem.row_names == ["min_quality"]


def test_a_deadline_gives_each_model_what_it_can_do_in_that_time():
    limited = pool(max_concurrency=2, requests_per_minute=6, tokens_per_minute=900)
    problem = assignment_problem(forecast(), Policy(deadline_s=20), limited, "slow")
    assert problem.capacity.tolist() == [2, np.inf]
    weights, most = problem.loads["busy_s"]
    assert weights[0].tolist() == [4, 1]
    assert most.tolist() == [40, np.inf]
    weights, most = problem.loads["tokens"]
    assert weights[0].tolist() == [150, 150]
    assert most.tolist() == [300, np.inf]


def test_the_policys_capacity_and_the_deadlines_both_hold():
    limited = pool(requests_per_minute=6)
    policy = Policy(deadline_s=60, capacity={"slow": 4, "fast": 9})
    assert assignment_problem(forecast(), policy, limited, "slow").capacity.tolist() == [4, 9]
    policy = Policy(deadline_s=20, capacity={"slow": 4, "fast": 9})
    assert assignment_problem(forecast(), policy, limited, "slow").capacity.tolist() == [2, 9]


def test_a_query_that_takes_longer_than_the_deadline_is_not_for_that_model():
    problem = assignment_problem(forecast(), Policy(deadline_s=3), pool(), "slow")
    assert problem.forbidden.tolist() == [[True, False]] * 4


def test_a_deadline_with_an_unknown_latency_names_the_model_and_the_fix():
    unknown = np.full((4, 2), np.nan)
    with pytest.raises(ConfigError, match="latency of 'slow' is unknown; add latency"):
        assignment_problem(forecast(latency_s=unknown), Policy(deadline_s=3), pool(max_concurrency=1), "slow")
    assignment_problem(forecast(latency_s=unknown), Policy(deadline_s=3), pool(), "slow")


def test_a_query_longer_than_the_window_is_not_for_that_model():
    assert too_long(forecast(), pool(context_window=150)).tolist() == [[False, False]] * 4
    assert too_long(forecast(), pool(context_window=149)).tolist() == [[True, False]] * 4
    without_answers = forecast(output_tokens=np.full((4, 2), np.nan))
    assert too_long(without_answers, pool(context_window=100)).tolist() == [[False, False]] * 4


@pytest.fixture(scope="module")
def router() -> Router:
    n = 40
    queries = ["q" * (i + 1) for i in range(n)]
    lengths = np.tile(np.arange(1.0, n + 1)[:, None], (1, 2))
    right = np.tile([1.0, 0.0], (n, 1))
    answers = np.full((n, 2), 100.0)
    table = OutcomeTable(queries, queries, ["slow", "fast"], right, input_tokens=lengths, output_tokens=answers)
    models = [
        Model(
            name="slow",
            input_usd_per_million_tokens=1,
            output_usd_per_million_tokens=1,
            max_concurrency=2,
            base_latency_s=1,
            output_tokens_per_s=100,
            context_window=1000,
        ),
        Model(name="fast", input_usd_per_million_tokens=0.1, output_usd_per_million_tokens=0.1),
    ]
    return Router.fit(table, ModelPool(models), Policy(min_quality=1.0, relative_to="best"), predictor="prior")


def test_a_plan_gives_no_model_more_than_it_can_finish_in_time(router):
    queries = [f"q{i}" for i in range(30)]
    in_time = router.plan(queries, Policy(min_quality=1.0, relative_to="best", deadline_s=10))
    assert in_time.models.count("slow") == 10  # two at a time, two seconds each, ten seconds
    assert not in_time.floor_met
    assert router.plan(queries).models.count("slow") == 30


def test_a_prompt_too_long_for_the_best_model_goes_elsewhere(router):
    long = "word " * 2000
    assert router.route("q").model == "slow"
    assert router.route(long).model == "fast"
    assert router.plan(["q", long]).models == ["slow", "fast"]
    assert router.route(long).ranking == ("fast",)
