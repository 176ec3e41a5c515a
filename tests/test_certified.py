"""Plans with `Policy(confidence=...)`: what the router makes of a certificate, and when it is void."""

import logging

import numpy as np
import pytest

from eccos_integrations import ConfigError, Model, OutcomeTable, Policy, Router
from tests.contracts.tables import embed

SURE = Policy(min_quality=0.9, relative_to="best", confidence=0.95)
MODELS = ["large", "small"]


def outcomes(n, seed=0, right=0.95):
    """The small model is nearly as good on sums, and hopeless on proofs."""
    rng = np.random.default_rng(seed)
    is_sum = rng.random(n) < 0.8
    numbers = 10 * rng.permutation(10**6)[:n] + seed  # no two seeds ask the same
    texts = [f"{'add the numbers' if s else 'prove the theorem'} {k}" for k, s in zip(numbers, is_sum, strict=True)]
    chance = np.column_stack([np.full(n, right), np.where(is_sum, right, 0.2)])
    quality = (rng.random((n, 2)) < chance).astype(float)
    cost = np.tile([0.01, 0.001], (n, 1)) * rng.lognormal(0, 0.2, (n, 1))
    return OutcomeTable(texts, texts, MODELS, quality=quality, cost_usd=cost)


@pytest.fixture(scope="module")
def fitted():
    return Router.fit(outcomes(2000), policy=SURE, predictor="ridge")


@pytest.fixture(scope="module")
def queries():
    return outcomes(300, seed=1).queries


def test_a_certified_plan_says_what_is_certain_and_sends_queries_where_the_price_does(fitted, queries):
    plan = fitted.plan(queries)
    guarantee = plan.guarantee
    assert (guarantee.certified, guarantee.voided, plan.floor_met) == (True, "", True)
    assert (guarantee.floor, guarantee.confidence, guarantee.bound) == (0.9, 0.95, "wsr")
    assert (guarantee.relative_to, guarantee.sample_size) == ("large", 600)
    assert 0.9 <= guarantee.lower_bound < 1
    forecast = fitted.forecast(queries)
    wanted = np.argmin(forecast.cost_usd - guarantee.price * forecast.quality, axis=1)
    np.testing.assert_array_equal(plan.assignment, wanted)
    assert plan.total_cost_usd < 0.6 * forecast.cost_usd[:, 0].sum()
    assert plan.solution.lower_bound == pytest.approx(plan.total_cost_usd)


def test_the_floor_holds_on_outcomes(fitted):
    fresh = outcomes(4000, seed=2)
    plan = fitted.plan(fresh.queries)
    realised = fresh.quality[np.arange(4000), plan.assignment].mean()
    assert realised >= 0.9 * fresh.quality[:, 0].mean()


def test_single_queries_go_where_the_plan_sends_them(fitted, queries):
    plan = fitted.plan(queries[:40])
    decisions = [fitted.route(query) for query in queries[:40]]
    assert [decision.model for decision in decisions] == plan.models
    assert all(decision.floor_met for decision in decisions)
    assert "certified" in decisions[0].reason


def test_what_is_not_certified_goes_to_the_best_model_and_says_so(queries, caplog):
    with caplog.at_level(logging.WARNING, "eccos"):
        router = Router.fit(outcomes(60), policy=SURE.model_copy(update={"min_quality": 0.99}), predictor="ridge")
        plan = router.plan(queries)
    assert not plan.guarantee.certified
    assert set(plan.models) == {router.best}
    assert "not certified" in plan.guarantee.message
    assert "not certified" in caplog.text
    assert router.route(queries[0]).model == router.best


def test_a_limit_that_binds_is_kept_and_voids_the_guarantee(fitted, queries):
    wanted = fitted.plan(queries).models.count("small")
    limited = SURE.model_copy(update={"capacity": {"small": wanted // 2}})
    plan = fitted.plan(queries, limited)
    assert plan.models.count("small") <= wanted // 2
    assert plan.models.count(None) == 0
    assert "limit" in plan.guarantee.voided
    assert not plan.floor_met
    assert fitted.plan(queries, SURE.model_copy(update={"capacity": {"small": wanted}})).guarantee.voided == ""
    assert plan.solution.lower_bound <= plan.total_cost_usd * (1 + 1e-9)


def test_another_floor_is_certified_on_the_same_rows_and_a_higher_one_costs_more(fitted, queries):
    low, high = (fitted.plan(queries, SURE.model_copy(update={"min_quality": f})) for f in (0.85, 0.93))
    assert low.guarantee.certified
    assert high.guarantee.certified
    assert low.total_cost_usd <= high.total_cost_usd


def test_feedback_teaches_the_forecasts_but_not_what_is_certified(queries):
    router = Router.fit(outcomes(800), policy=SURE, predictor="ridge")
    before, asked = router.plan(queries).models, Policy(min_quality=0.9, relative_to="best")
    forecast = router.forecast(queries)
    for query in queries[:30]:
        router.feedback(router.route(query, asked).id, quality=1.0)
    assert np.abs(router.forecast(queries).quality - forecast.quality).max() > 0
    assert router.plan(queries).models == before
    assert router.plan(queries).guarantee.voided == ""


def test_outcomes_that_leave_the_forecasts_void_the_guarantee_and_good_ones_never_renew_it(queries, caplog):
    router = Router.fit(outcomes(800), policy=SURE, predictor="ridge")
    with caplog.at_level(logging.WARNING, "eccos"):
        for query in queries[:150]:
            router.feedback(router.route(query).id, quality=0.0)
    assert "drifted" in caplog.text
    assert "drifted" in router.plan(queries).guarantee.voided
    assert not router.plan(queries).floor_met
    for query in queries:
        router.feedback(router.route(query).id, quality=1.0)
    assert "drifted" in router.report().guarantee.voided


def test_outcomes_as_forecast_void_nothing():
    router = Router.fit(outcomes(800), policy=SURE, predictor="ridge")
    fresh = outcomes(600, seed=5)
    for row, query in enumerate(fresh.queries):
        decision = router.route(query)
        router.feedback(decision.id, quality=float(fresh.quality[row, fresh.models.index(decision.model)]))
    assert router.plan(fresh.queries).guarantee.voided == ""


@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_changed_pool_voids_the_guarantee(change, queries):
    table = outcomes(400)
    three = OutcomeTable(table.query_ids, table.queries, [*MODELS, "other"], quality=table.quality[:, [0, 1, 1]],
                         cost_usd=table.cost_usd[:, [0, 1, 1]])  # fmt: skip
    router = Router.fit(three, policy=SURE, predictor="ridge")
    assert router.plan(queries).guarantee.voided == ""
    if change == "add":
        some = table.select(["small"]).take(range(50))
        new = OutcomeTable(some.query_ids, some.queries, ["new"], quality=some.quality, cost_usd=some.cost_usd)
        router.add_model(Model(name="new"), new)
    else:
        router.remove_model("other")
    plan = router.plan(queries)
    assert "added or removed" in plan.guarantee.voided
    assert not plan.floor_met
    assert set(plan.models) <= set(router.models)


def test_a_router_that_kept_nothing_back_certifies_only_by_crossfit(queries):
    router = Router.fit(outcomes(800), policy=Policy(min_quality=0.9, relative_to="best"), predictor="ridge")
    with pytest.raises(ConfigError, match=r"kept no outcomes back.*crossfit"):
        router.plan(queries, SURE)
    plan = router.plan(queries, SURE.model_copy(update={"bound": "crossfit"}))
    assert plan.guarantee.certified
    assert "approximate" in plan.guarantee.message


def test_outcomes_to_certify_on_can_be_given(queries):
    router = Router.fit(outcomes(600), policy=SURE, predictor="ridge", calibration=outcomes(900, seed=3))
    assert router.plan(queries).guarantee.sample_size == 900
    seen = outcomes(600)
    nobody = OutcomeTable(["z"], ["z"], ["nobody"], quality=np.ones((1, 1)))
    for wrong, words in ((seen.take(range(5)), "5 of its 5"), ("table", "got a str"), (nobody, "none of its models")):
        with pytest.raises(ConfigError, match=f"calibration: {words}"):
            Router.fit(seen, policy=SURE, predictor="ridge", calibration=wrong)


def test_a_table_too_small_to_keep_a_part_back_is_refused_in_words():
    with pytest.raises(ConfigError, match="1 distinct query"):
        Router.fit(outcomes(2), policy=SURE)


def test_an_absolute_floor_is_certified_too(queries):
    router = Router.fit(outcomes(2000), policy=Policy(min_quality=0.8, confidence=0.9), predictor="ridge")
    guarantee = router.plan(queries).guarantee
    assert (guarantee.certified, guarantee.relative_to) == (True, None)
    assert guarantee.lower_bound >= 0.8


def test_the_same_is_certified_after_saving_and_loading_feedback_and_drift_included(tmp_path, queries):
    router = Router.fit(outcomes(800), policy=SURE, predictor="ridge")
    for query in queries[:150]:
        router.feedback(router.route(query).id, quality=0.0)
    router.save(tmp_path / "router")
    loaded = Router.load(tmp_path / "router")
    assert loaded.plan(queries).guarantee == router.plan(queries).guarantee
    assert loaded.plan(queries).models == router.plan(queries).models
    np.testing.assert_allclose(loaded.forecast(queries).quality, router.forecast(queries).quality)


def test_a_function_as_encoder_and_a_certificate_go_together(queries):
    router = Router.fit(outcomes(400), policy=SURE, predictor="retrieval", encoder=embed)
    assert router.plan(queries).guarantee.sample_size == 120


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"confidence": 0.95}, "give min_quality"),
        ({"confidence": 0.95, "min_quality": {"a": 0.5}}, "one number"),
        ({"confidence": 1.5, "min_quality": 0.5}, "confidence"),
        ({"confidence": 0.95, "min_quality": 0.5, "max_mean_cost_usd": 1.0}, "budget"),
        ({"bound": "clt", "min_quality": 0.5}, "bound needs confidence"),
        ({"confidence": 0.95, "min_quality": 0.5, "bound": "hope"}, "bound"),
    ],
)
def test_a_policy_that_cannot_be_certified_is_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        Policy(**wrong)
