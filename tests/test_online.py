"""Feedback, models that come and go, exploration, reports."""

import json
import math
import pickle

import numpy as np
import pytest

from eccos_integrations import ConfigError, Model, OutcomeTable, Policy, Router
from eccos_integrations.online import KNOWN
from tests.contracts.tables import make_table, priced

BEST = Policy(min_quality=0.9, relative_to="best")
QUERIES = [f"sum of two numbers, case {i}" for i in range(200, 260)]
CHEAP = Model(name="new", input_usd_per_million_tokens=0.1, output_usd_per_million_tokens=0.4)


@pytest.fixture
def router():
    table = make_table(160)
    return Router.fit(table, priced(*table.models), BEST, predictor="hybrid")


def measures(forecast):
    return np.stack([forecast.quality, forecast.cost_usd, forecast.output_tokens, forecast.quality_std])


def test_feedback_moves_the_forecast_of_that_model_on_like_queries_at_once(router):
    before, cheapest = router.forecast(QUERIES), Policy()
    for _ in range(20):
        decision = router.route(QUERIES[0], cheapest)
        router.feedback(decision.id, quality=0.0, output_tokens=100)
    after, column = router.forecast(QUERIES), router.models.index(decision.model)
    assert after.quality[0, column] < before.quality[0, column] - 0.05
    assert after.output_tokens[0, column] < before.output_tokens[0, column]
    assert after.quality_std[0, column] < before.quality_std[0, column]
    others = [j for j in range(len(router.models)) if j != column]
    np.testing.assert_allclose(after.quality[:, others], before.quality[:, others], atol=0.005)


def test_the_same_feedback_is_learnt_once_and_what_is_new_in_it_is_learnt(router):
    decision = router.route(QUERIES[0])
    router.feedback(decision.id, quality=0.0)
    once = router.forecast(QUERIES)
    router.feedback(decision.id, quality=0.0)
    np.testing.assert_array_equal(measures(router.forecast(QUERIES)), measures(once))
    router.feedback(decision.id, quality=1.0, output_tokens=5000)
    after, column = router.forecast(QUERIES), router.models.index(decision.model)
    np.testing.assert_array_equal(after.quality, once.quality)
    assert after.output_tokens[0, column] > once.output_tokens[0, column]
    assert len(router.feedbacks) == 3


@pytest.mark.parametrize("wrong", [{"quality": 1.5}, {"quality": math.nan}, {"cost_usd": -1}, {"latency_s": "fast"}])
def test_bad_feedback_teaches_nothing(router, wrong):
    before = measures(router.forecast(QUERIES))
    decision = router.route(QUERIES[0])
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        router.feedback(decision.id, **wrong)
    np.testing.assert_array_equal(measures(router.forecast(QUERIES)), before)
    assert router.feedbacks == []


def test_feedback_on_nothing_known_is_refused(router):
    with pytest.raises(ConfigError, match="not a decision of this router"):
        router.feedback("0" * 32, quality=1.0)


def test_a_predictor_of_ones_own_is_taught_by_its_update():
    taught = []

    class Own:
        def fit(self, table, pool, *, seed=0):
            self.pool = pool

        def forecast(self, queries):
            from eccos_integrations import Forecast

            cells = np.full((len(queries), len(self.pool)), 0.5)
            return Forecast(self.pool.names, cells, cells)

        def update(self, table):
            taught.append((table.queries, table.models, table.quality.tolist()))

    router = Router.fit(make_table(), policy=BEST, predictor=Own())
    decision = router.route("add 1 and 2")
    router.feedback(decision.id, quality=0.25)
    assert taught == [(["add 1 and 2"], [decision.model], [[0.25]])]
    with pytest.raises(ConfigError, match="cannot add"):
        router.add_model(CHEAP)


def test_a_new_model_is_routed_to_at_once_and_changes_no_other_forecast(router):
    before, models = router.forecast(QUERIES), router.models
    router.add_model(CHEAP)
    after = router.forecast(QUERIES)
    assert router.models == [*models, "new"]
    np.testing.assert_allclose(measures(after.select(models)), measures(before), rtol=1e-12)
    assert (after.quality_std[:, -1] > before.quality_std.max(axis=1)).all()
    assert set(router.plan(QUERIES).models) <= set(router.models)
    with pytest.raises(ConfigError, match="already"):
        router.add_model(CHEAP)


@pytest.mark.parametrize(
    ("model", "explore", "words"),
    [(CHEAP, 2, "explore: 2"), ("new", 0.1, "got a str"), (Model(name="new"), 0.1, "no price is known")],
)
def test_a_model_that_cannot_be_added_changes_nothing(router, model, explore, words):
    before = router.models
    with pytest.raises(ConfigError, match=words):
        router.add_model(model, explore=explore)
    assert router.models == before


def test_a_bounded_share_of_single_queries_explores_a_new_model_until_it_is_known(router):
    dear = CHEAP.model_copy(update={"output_usd_per_million_tokens": 4e5})
    router.add_model(dear, explore=0.1)
    first = [router.route(query) for query in QUERIES[:50]]
    assert sum(decision.model == "new" for decision in first) == 5
    assert all("explores" in decision.reason for decision in first if decision.model == "new")
    for _ in range(KNOWN * 10):
        decision = router.route(QUERIES[0])
        if decision.model == "new":
            router.feedback(decision.id, quality=0.0)
    assert not any(router.route(query).model == "new" for query in QUERIES)


def test_a_bounded_share_of_a_plan_explores_a_new_model(router):
    dear = CHEAP.model_copy(update={"output_usd_per_million_tokens": 4e5})
    router.add_model(dear, explore=0.05)
    assert router.plan(QUERIES).models.count("new") == 3
    assert router.plan(QUERIES[:5]).models.count("new") == 0
    limited = BEST.model_copy(update={"capacity": {"new": 1}})
    assert router.plan(QUERIES, limited).models.count("new") == 1


@pytest.mark.parametrize("explore", [0, 0.0])
def test_no_exploration_is_possible(router, explore):
    router.add_model(CHEAP.model_copy(update={"output_usd_per_million_tokens": 4e5}), explore=explore)
    assert "new" not in router.plan(QUERIES).models


def test_a_model_with_outcomes_is_forecast_by_them():
    table = make_table(400)
    router = Router.fit(table.select(["large", "small"]), priced("large", "small"), BEST, predictor="hybrid")
    router.add_model(priced("medium")["medium"], table)
    whole = Router.fit(table, priced(*table.models), BEST, predictor="hybrid")
    added, fitted = (each.forecast(QUERIES).select(["medium"]) for each in (router, whole))
    np.testing.assert_allclose(added.quality.mean(), fitted.quality.mean(), atol=0.03)
    np.testing.assert_allclose(added.cost_usd.mean(), fitted.cost_usd.mean(), rtol=0.1)
    assert "medium" not in [d.model for d in map(router.route, QUERIES) if "explores" in d.reason]


def test_a_removed_model_gets_nothing_more_and_the_best_of_the_rest_takes_over(router):
    router.remove_model(router.best)
    assert router.models == ["medium", "small"]
    assert router.best == "medium"
    plan = router.plan(QUERIES)
    assert set(plan.models) <= {"medium", "small"}
    assert plan.floor_met
    with pytest.raises(ConfigError, match="one model would be left"):
        router.remove_model("small")
    with pytest.raises(ConfigError, match="not in the pool"):
        router.remove_model("large")


def test_a_capacity_of_the_policy_goes_with_the_model():
    policy = BEST.model_copy(update={"capacity": {"medium": 3, "small": 40}})
    router = Router.fit(make_table(80), policy=policy, predictor="ridge")
    router.remove_model("medium")
    assert router.policy.capacity == {"small": 40}
    assert router.plan(QUERIES).models.count("small") <= 40


def test_all_of_it_survives_saving_and_loading(router, tmp_path):
    router.add_model(CHEAP, explore=0.1)
    for query in QUERIES:
        router.feedback(router.route(query).id, quality=1.0, output_tokens=100)
    router.remove_model("medium")
    router.save(tmp_path / "router")
    loaded = Router.load(tmp_path / "router")
    np.testing.assert_array_equal(measures(loaded.forecast(QUERIES)), measures(router.forecast(QUERIES)))
    assert loaded.plan(QUERIES).models == router.plan(QUERIES).models
    assert [loaded.route(q).model for q in QUERIES] == [router.route(q).model for q in QUERIES]
    assert str(loaded.report()) == str(router.report())


def test_a_copy_learns_on_its_own_and_carries_no_prompt(router):
    decision = router.route("a very particular prompt")
    raw = pickle.dumps(router)
    assert b"particular" not in raw
    copy = pickle.loads(raw)
    with pytest.raises(ConfigError, match="not a decision"):
        copy.feedback(decision.id, quality=1.0)
    before = measures(router.forecast(QUERIES))
    copy.feedback(copy.route(QUERIES[0]).id, quality=0.0)
    np.testing.assert_array_equal(measures(router.forecast(QUERIES)), before)


def test_prompts_are_kept_only_where_that_was_asked_for(tmp_path):
    table = make_table(40)
    for store_text in (False, True):
        router = Router.fit(table, policy=BEST, predictor="ridge", store_text=store_text)
        router.save(tmp_path / "router")
        raw = b"".join(path.read_bytes() for path in (tmp_path / "router").iterdir())
        assert (b"proof about primes" in raw) == store_text
    kept = Router.load(tmp_path / "router").outcomes
    assert (kept.queries, kept.models, kept.query_ids) == (table.queries, table.models, table.query_ids)
    np.testing.assert_array_equal(kept.quality, table.quality)
    assert isinstance(kept, OutcomeTable)


def test_a_report_shows_what_was_chosen_from_and_how_forecasts_did():
    table = make_table(120, observed=0.8)
    router = Router.fit(table, policy=BEST)
    report = router.report()
    assert report.best == router.best
    assert report.trials[0].predictor == "best single"
    for line in report.models:
        column = table.quality[:, table.models.index(line.name)]
        assert line.outcomes == np.isfinite(column).sum()
        assert line.quality == pytest.approx(np.nanmean(column))
        assert line.forecast_quality == pytest.approx(line.quality, abs=0.05)
    text = str(report)
    for word in ("best single", "auto", *table.models):
        assert word in text
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["best"] == router.best
