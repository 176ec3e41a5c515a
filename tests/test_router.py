import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from eccos_integrations import (
    ConfigError,
    InfeasibleError,
    OutcomeTable,
    Policy,
    Router,
    load_sample,
)
from tests.contracts.tables import ODD_TEXTS, embed, make_table

QUERIES = [f"sum of two numbers, case {i}" for i in range(60)]
BEST = Policy(min_quality=0.95, relative_to="best")


@pytest.fixture(scope="module")
def router():
    return Router.fit(make_table(120), policy=BEST, predictor="retrieval")


@pytest.fixture(scope="module")
def sample_router():
    return Router.fit(load_sample().take(range(0, 1000, 5)), policy=BEST, predictor="retrieval")


def outcomes(quality, cost_usd, models=("a", "b")):
    ids = [f"text {i}" for i in range(len(quality))]
    return OutcomeTable(ids, ids, list(models), quality=quality, cost_usd=cost_usd)


def test_a_plan_meets_the_floor_at_least_cost(router):
    plan = router.plan(QUERIES)
    best = router.models.index(router.best)
    assert plan.floor == pytest.approx(0.95 * router.forecast(QUERIES).quality[:, best].mean())
    assert plan.mean_quality >= plan.floor - 1e-12
    assert (plan.floor_met, plan.guarantee) == (True, None)
    assert plan.total_cost_usd < router.forecast(QUERIES).cost_usd[:, best].sum()


def test_a_plan_says_for_each_query_what_its_arrays_say(router):
    plan, forecast = router.plan(QUERIES), router.forecast(QUERIES)
    rows = np.arange(len(QUERIES))
    assert plan.models == [router.models[j] for j in plan.assignment] == [decision.model for decision in plan.decisions]
    assert [d.quality for d in plan.decisions] == forecast.quality[rows, plan.assignment].tolist()
    assert [d.cost_usd for d in plan.decisions] == forecast.cost_usd[rows, plan.assignment].tolist()
    assert plan.mean_cost_usd * len(plan) == pytest.approx(plan.total_cost_usd)
    assert sum(plan.shares.values()) == pytest.approx(1)
    assert len({decision.id for decision in plan.decisions}) == len(plan)
    for decision in plan.decisions:
        assert decision.ranking[0] == decision.model
        assert sorted(decision.ranking) == sorted(router.models)


@pytest.mark.parametrize(
    "capacity", [{"small": 5}, {"small": 0, "medium": 20}, {"large": 30, "medium": 20, "small": 10}]
)
def test_a_plan_never_exceeds_the_capacity(router, capacity):
    models = router.plan(QUERIES, Policy(min_quality=0.3, capacity=capacity)).models
    assert None not in models
    assert all(models.count(name) <= most for name, most in capacity.items())


def test_what_no_capacity_is_left_for_is_not_placed(router, caplog):
    policy = Policy(capacity={"large": 3, "medium": 4, "small": 5})
    plan = router.plan(QUERIES, policy)
    assert plan.models.count(None) == 48
    assert (plan.assignment == -1).sum() == 48
    left_out = next(decision for decision in plan.decisions if decision.model is None)
    assert np.isnan([left_out.quality, left_out.cost_usd]).all()
    assert sorted(left_out.ranking) == sorted(router.models)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "48 of 60 queries fit nowhere under capacity" in caplog.text
    with pytest.raises(ConfigError, match="not a decision"):
        router.feedback(left_out.id, quality=1.0)


def test_a_floor_out_of_reach_is_missed_by_the_least_and_logged_once(router, caplog):
    plan = router.plan(QUERIES, Policy(min_quality=1.0))
    assert (plan.floor_met, plan.solution.status) == (False, "infeasible")
    assert plan.mean_quality == pytest.approx(router.forecast(QUERIES).quality.max(axis=1).mean())
    assert [(record.name, record.levelno) for record in caplog.records] == [("eccos", logging.WARNING)]
    assert f"best reachable is {plan.mean_quality:.4f}" in caplog.text


def test_a_budget_out_of_reach_takes_the_cheapest(router, caplog):
    plan = router.plan(QUERIES, Policy(max_mean_cost_usd=1e-9))
    assert plan.total_cost_usd == pytest.approx(router.forecast(QUERIES).cost_usd.min(axis=1).sum())
    assert "max_mean_cost_usd" in caplog.text


@pytest.mark.parametrize(
    ("row", "values"), [("min_quality", {"min_quality": 1.0}), ("max_mean_cost_usd", {"max_mean_cost_usd": 0.0}),
                        ("capacity", {"capacity": {"large": 1, "medium": 1, "small": 1}})]
)  # fmt: skip
def test_a_policy_may_ask_for_an_error_instead(router, row, values, caplog):
    with pytest.raises(InfeasibleError, match=row):
        router.plan(QUERIES, Policy(on_infeasible="raise", **values))
    assert not caplog.records


def test_a_budget_alone_buys_quality(router):
    forecast = router.forecast(QUERIES)
    budget = float(forecast.cost_usd.mean())
    plan = router.plan(QUERIES, Policy(max_mean_cost_usd=budget))
    assert plan.mean_cost_usd <= budget * (1 + 1e-9)
    assert plan.mean_quality > router.plan(QUERIES, Policy(max_mean_cost_usd=budget / 2)).mean_quality
    assert (plan.floor, plan.floor_met) == (None, True)


def test_without_any_rule_the_cheapest_model_wins(router):
    plan = router.plan(QUERIES, Policy())
    assert plan.assignment.tolist() == router.forecast(QUERIES).cost_usd.argmin(axis=1).tolist()


def test_each_group_reaches_its_own_floor(router):
    groups = ["easy"] * 30 + ["hard"] * 30
    quality = router.forecast(QUERIES).quality
    high = float(quality[30:].max(axis=1).mean()) - 0.01
    plan = router.plan(QUERIES, Policy(min_quality={"easy": 0.1, "hard": high, "absent": 1.0}), groups=groups)
    taken = quality[np.arange(60), plan.assignment]
    assert (plan.floor, plan.floor_met) == ({"easy": 0.1, "hard": high}, True)
    assert taken[30:].mean() >= high - 1e-12
    assert taken[:30].mean() < taken[30:].mean()


def test_a_groups_relative_floor_is_of_the_best_model_on_that_group(router):
    groups = [1] * 20 + [2] * 40
    plan = router.plan(QUERIES, Policy(min_quality={"1": 0.5, "2": 0.9}, relative_to="best"), groups=groups)
    best = router.forecast(QUERIES).quality[:, router.models.index(router.best)]
    assert plan.floor == pytest.approx({"1": 0.5 * best[:20].mean(), "2": 0.9 * best[20:].mean()})


def test_groups_that_do_not_fit_are_refused(router):
    floors = Policy(min_quality={"a": 0.5})
    with pytest.raises(ConfigError, match="groups"):
        router.plan(QUERIES, floors)
    with pytest.raises(ConfigError, match="59 labels for 60"):
        router.plan(QUERIES, floors, groups=["a"] * 59)
    with pytest.raises(ConfigError, match="'b'"):
        router.plan(QUERIES, floors, groups=["a", "b"] * 30)


def test_no_queries_make_an_empty_plan(router):
    for policy, groups in ((None, None), (Policy(max_mean_cost_usd=1), None), (Policy(min_quality={"a": 1.0}), [])):
        plan = router.plan([], policy, groups)
        assert (len(plan), plan.models, plan.assignment.tolist(), plan.shares) == (0, [], [], {})
        assert (plan.total_cost_usd, plan.floor_met, plan.solution.status) == (0, True, "optimal")


@pytest.mark.parametrize("predictor", ["prior", "retrieval", "trained"])
def test_no_queries_make_an_empty_plan_with_a_function_as_encoder(predictor):
    assert Router.fit(make_table(), predictor=predictor, encoder=embed).plan([]).models == []


def test_one_query_is_planned_too(router):
    plan = router.plan(["prove it"], Policy(min_quality=0.1))
    assert (len(plan), plan.floor_met, plan.models) == (1, True, [plan.decisions[0].model])


@pytest.mark.parametrize("queries", ["one string", [1], ["a", b"b"], ["a", None], [["a"]], None, 3])
def test_queries_that_are_no_list_of_strings_are_refused(router, queries):
    with pytest.raises(ConfigError, match="queries"):
        router.plan(queries)


@pytest.mark.parametrize("call", ["plan", "route"])
def test_a_capacity_of_an_unknown_model_is_refused(router, call):
    with pytest.raises(ConfigError, match="nobody"):
        getattr(router, call)(["a"] if call == "plan" else "a", Policy(capacity={"nobody": 1}))


def test_any_text_can_be_planned(router):
    assert None not in router.plan(list(ODD_TEXTS.values())).models


def test_a_query_is_routed_the_same_every_time(router):
    first, again = router.route("prove it"), router.route("prove it")
    assert (first.model, first.ranking, first.quality, first.cost_usd) == (
        again.model, again.ranking, again.quality, again.cost_usd,
    )  # fmt: skip
    assert first.id != again.id
    assert first.ranking[0] == first.model
    assert sorted(first.ranking) == sorted(router.models)
    assert first.floor_met


@pytest.mark.parametrize("floor", [0.9, 0.95, 1.0])
def test_many_routed_queries_keep_the_floor_on_average(sample_router, floor):
    policy = Policy(min_quality=floor, relative_to="best")
    queries = load_sample().take(range(1, 1000, 5)).queries  # none of those it was fitted on
    mean = np.mean([sample_router.route(query, policy).quality for query in queries])
    asked = floor * sample_router.forecast(queries).quality[:, sample_router.models.index(sample_router.best)].mean()
    assert mean == pytest.approx(asked, abs=0.03)


@pytest.mark.parametrize("floor", [0.6, 0.7, 0.8])
def test_routed_queries_keep_the_floor_even_where_all_look_alike(floor):
    table = outcomes(np.tile([0.5, 0.9], (50, 1)), np.tile([0.001, 0.01], (50, 1)))
    router = Router.fit(table, policy=Policy(min_quality=floor), predictor="prior")
    decisions = [router.route(f"query {i}") for i in range(50)]
    assert all(decision.floor_met for decision in decisions)
    assert np.mean([decision.quality for decision in decisions]) >= floor - 0.01


def test_routed_queries_keep_the_floor_where_calls_are_free():
    table = outcomes(np.tile([0.5, 0.9], (50, 1)), np.zeros((50, 2)))
    router = Router.fit(table, policy=Policy(min_quality=0.8), predictor="prior")
    assert router.route("a").model == "b"


def test_a_floor_gives_way_to_a_budget_in_routing_as_in_planning():
    table = outcomes(np.tile([0.5, 0.9], (50, 1)), np.tile([0.001, 0.01], (50, 1)))
    router = Router.fit(table, policy=Policy(min_quality=0.8, max_mean_cost_usd=0.002), predictor="prior")
    assert router.plan(QUERIES).mean_cost_usd <= 0.002
    assert np.mean([router.route(query).cost_usd for query in QUERIES]) <= 0.002


def test_routed_queries_stay_within_a_budget_even_where_all_look_alike():
    table = outcomes(np.tile([0.9, 0.5], (50, 1)), np.tile([0.01, 0.001], (50, 1)))
    router = Router.fit(table, policy=Policy(max_mean_cost_usd=0.005), predictor="prior")
    assert np.mean([router.route(f"query {i}").cost_usd for i in range(50)]) <= 0.005


def test_routed_queries_stay_within_a_budget_on_average(sample_router):
    queries = load_sample().take(range(1, 1000, 5)).queries
    budget = float(np.median(sample_router.forecast(queries).cost_usd))
    mean = np.mean([sample_router.route(query, Policy(max_mean_cost_usd=budget)).cost_usd for query in queries])
    assert budget / 3 < mean < budget * 1.1


def test_a_floor_out_of_reach_is_said_in_each_decision(router):
    decision = router.route("prove it", Policy(min_quality=1.0))
    assert not decision.floor_met
    assert decision.quality == max(router.forecast(["prove it"]).quality[0])


def test_routing_takes_no_floor_per_group(router):
    with pytest.raises(ConfigError, match="groups"):
        router.route("a", Policy(min_quality={"a": 0.5}))


@pytest.mark.parametrize("query", [3, None, b"bytes", ["a"], ("a",)])
def test_what_is_no_text_cannot_be_routed(router, query):
    with pytest.raises(ConfigError, match="queries"):
        router.route(query)


def test_feedback_is_kept_with_the_model_it_is_about(router):
    decision = router.route("a")
    before = len(router.feedbacks)
    router.feedback(decision.id, quality=1, output_tokens=212)
    router.feedback(router.plan(["b"]).decisions[0].id, quality=0.0, cost_usd=0.1, input_tokens=1, latency_s=0.5)
    kept = router.feedbacks[before:]
    assert [(f.quality, f.output_tokens, f.cost_usd) for f in kept] == [(1, 212, None), (0.0, None, 0.1)]
    assert (kept[0].decision_id, kept[0].model) == (decision.id, decision.model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("quality", 1.1), ("quality", -0.1), ("quality", np.nan), ("quality", "good"), ("cost_usd", -1),
     ("cost_usd", np.inf), ("input_tokens", -1), ("output_tokens", np.nan), ("latency_s", [1.0, 2.0])],
)  # fmt: skip
def test_feedback_out_of_range_is_refused_and_not_kept(router, name, value):
    decision, before = router.route("a"), router.feedbacks
    with pytest.raises(ConfigError, match=f"^{name}"):
        router.feedback(decision.id, **{name: value})
    assert router.feedbacks == before


@pytest.mark.parametrize("decision_id", ["unknown", "", None, 7])
def test_feedback_on_an_unknown_decision_is_refused(router, decision_id):
    with pytest.raises(ConfigError, match="decision_id"):
        router.feedback(decision_id, quality=1.0)


def test_no_words_show_the_text_of_a_query(router, caplog):
    secret = "xylophone"
    with caplog.at_level(logging.DEBUG):
        plan, decision = router.plan([secret] * 3, Policy(min_quality=1.0)), router.route(secret)
        router.feedback(decision.id, quality=1.0)
    shown = [plan, plan.decisions, plan.solution, decision, router, router.feedbacks, router.forecast([secret])]
    assert secret not in repr(shown) + caplog.text
    assert secret not in str(vars(decision)) + str(vars(plan))


def test_threads_can_plan_route_and_give_feedback_at_once(router):
    before = len(router.feedbacks)
    expected = router.plan(QUERIES).models
    start = threading.Barrier(8)

    def work(part):
        start.wait()
        ids = []
        for query in QUERIES[part::8]:
            decision = router.route(query)
            router.feedback(decision.id, quality=0.5, latency_s=part)
            ids.append(decision.id)
        plan = router.plan(QUERIES)
        for decision in plan.decisions:
            router.feedback(decision.id, quality=1.0)
        return plan.models, [*ids, *(decision.id for decision in plan.decisions)]

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(work, range(8)))
    assert all(set(models) <= set(router.models) and len(models) == len(expected) for models, _ in results)
    ids = [decision_id for _, own in results for decision_id in own]
    assert len(set(ids)) == len(ids) == 9 * len(QUERIES)
    assert sorted(f.decision_id for f in router.feedbacks[before:]) == sorted(ids)
