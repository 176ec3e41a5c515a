import logging

import numpy as np
import pytest

from eccos_integrations import ModelPool, OutcomeTable, Policy, Router, load_sample
from eccos_integrations.encoders import LexicalEncoder
from eccos_integrations.predictors import PARTS, Forecast, RetrievalPredictor
from eccos_integrations.predictors.selection import VETO, choose, out_of_fold, routed_score
from tests.contracts.processes import run_python
from tests.contracts.tables import embed, make_table

FLOOR = Policy(min_quality=0.9, relative_to="best")


def as_forecast(table, quality, cost_usd=None):
    cost_usd = np.nan_to_num(table.cost_usd) if cost_usd is None else cost_usd
    unknown = np.full(quality.shape, np.nan)
    return Forecast(table.models, quality, cost_usd, unknown, unknown, unknown)


class Spy:
    """A predictor of one's own that remembers what it was shown."""

    def __init__(self, shown):
        self.shown = shown

    def __deepcopy__(self, memo):
        return Spy(self.shown)

    def fit(self, table, pool, *, seed=0):
        self.learnt, self.pool = set(table.queries), pool

    def forecast(self, queries):
        self.shown.append((self.learnt, list(queries)))
        cells = np.full((len(queries), len(self.pool)), 0.5)
        return Forecast(self.pool.names, cells, cells, cells, cells, cells)


def test_no_fold_forecasts_a_text_it_has_learnt():
    table = make_table(60)
    texts = [f"text {i % 20}" + " " * (i // 20) for i in range(60)]  # each thrice, spaced differently
    table = OutcomeTable(table.query_ids, texts, table.models, quality=table.quality, cost_usd=table.cost_usd)
    shown = []
    out_of_fold(Spy(shown), table, ModelPool.from_outcomes(table), seed=0)
    assert len(shown) == 5
    for learnt, asked in shown:
        assert not {" ".join(text.split()) for text in learnt} & {" ".join(text.split()) for text in asked}
    assert sorted(text for _, asked in shown for text in asked) == sorted(texts)


def test_out_of_fold_forecasts_stand_in_the_order_of_the_table():
    table = make_table(50)

    class Echo(Spy):
        def __deepcopy__(self, memo):
            return Echo([])

        def forecast(self, queries):
            cells = np.array([[int(query.split()[-1]) / 100] * len(self.pool) for query in queries])
            return Forecast(self.pool.names, cells, cells, cells, cells, cells)

    forecast = out_of_fold(Echo([]), table, ModelPool.from_outcomes(table), seed=3)
    assert forecast.quality[:, 0].tolist() == [i / 100 for i in range(50)]


def test_the_encoder_is_fitted_without_the_fold_it_is_asked_about():
    table = make_table(30)
    learnt = []

    class Encoder(LexicalEncoder):
        def fit(self, texts, *, seed=0):
            learnt.append(set(texts))
            return super().fit(texts, seed=seed)

    out_of_fold(RetrievalPredictor(Encoder()), table, ModelPool.from_outcomes(table), seed=0)
    assert len(learnt) == 5
    assert all(len(texts) == 24 for texts in learnt)


def test_the_predictor_given_stays_unfitted():
    table = make_table()
    predictor = RetrievalPredictor()
    out_of_fold(predictor, table, ModelPool.from_outcomes(table), seed=0)
    assert predictor.arrays() == {}


def test_auto_tries_every_part_and_takes_the_mean_of_those_that_route_well():
    table = (
        load_sample()
        .take(range(0, 1000, 8))
        .select(["gemini-1.5-flash", "gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18"])
    )
    router = Router.fit(table, policy=FLOOR, predictor="auto")
    first, *parts, blend = router.trials
    assert (first.predictor, first.score, blend.predictor) == ("best single", 1.0, "auto")
    assert [trial.predictor for trial in parts] == list(PARTS)
    assert all(0 < trial.score <= 1 and not trial.skipped for trial in parts)
    least = min(trial.score for trial in parts)
    assert all(trial.score <= VETO * least for trial in parts if trial.used)
    used = [trial.predictor for trial in parts if trial.used]
    assert used == (["prior"] if router.predictor.name == "prior" else list(router.predictor.parts))


def test_auto_prefers_what_tells_the_queries_apart():
    hard = np.arange(120) % 2
    texts = [f"{'prove the theorem' if h else 'add the numbers'} number {i}" for i, h in enumerate(hard)]
    quality = np.column_stack([1.0 - hard, np.ones(120)])
    cost = np.tile([0.001, 0.01], (120, 1))
    table = OutcomeTable([f"q{i}" for i in range(120)], texts, ["small", "large"], quality=quality, cost_usd=cost)
    router = Router.fit(table, policy=Policy(min_quality=0.95, relative_to="best"))
    scores = {trial.predictor: trial.score for trial in router.trials}
    assert scores["prior"] == pytest.approx(1)
    assert min(scores["retrieval"], scores["ridge"]) < 0.7
    assert router.predictor.name != "prior"


def test_auto_takes_the_prior_where_nothing_can_be_learnt():
    rng = np.random.default_rng(0)
    texts = [f"text number {i}" for i in range(100)]
    quality = np.column_stack([rng.random(100) < 0.5, np.ones(100)])
    table = OutcomeTable(texts, texts, ["small", "large"], quality=quality, cost_usd=np.tile([0.001, 0.01], (100, 1)))
    router = Router.fit(table, policy=Policy(min_quality=1.0, relative_to="best"))
    assert router.predictor.name == "prior"


def test_auto_is_the_same_for_the_same_seed():
    table = make_table(60)
    one, other = (choose(table, ModelPool.from_outcomes(table), FLOOR, "large", "lexical", seed=4) for _ in range(2))
    assert one[2] == other[2]
    np.testing.assert_array_equal(one[1].quality, other[1].quality)


def test_auto_asks_a_function_once_for_each_text():
    table = make_table()
    asked = []

    def function(texts):
        asked.extend(texts)
        return embed(texts)

    Router.fit(table, encoder=function)
    assert sorted(asked) == sorted(table.queries)


def test_auto_without_torch_lists_trained_as_skipped_and_says_how_to_get_it():
    code = """
from eccos_integrations import Router
from tests.contracts.tables import make_table
router = Router.fit(make_table())
print([(trial.predictor, trial.skipped) for trial in router.trials], router.plan(["a"]).models != [None])
"""
    fix = "torch is not installed; run: pip install 'eccos-integrations[neural]'"
    tried = ["best single", *(name for name in PARTS if name != "trained")]
    expected = [*((name, "") for name in tried), ("trained", fix), ("auto", "")]
    assert run_python(code, hidden=["torch"]) == f"{expected} True\n"


def test_auto_works_where_calls_are_free(recwarn):
    table = make_table()
    free = OutcomeTable(table.query_ids, table.queries, table.models, quality=table.quality,
                        cost_usd=np.zeros(table.quality.shape))  # fmt: skip
    for policy in (None, Policy(), Policy(max_mean_cost_usd=0)):
        router = Router.fit(free, policy=policy)
        assert all(np.isfinite(trial.score) for trial in router.trials)
        assert router.plan(["a", "b"]).total_cost_usd == 0
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


@pytest.mark.parametrize("policy", [Policy(), FLOOR, Policy(max_mean_cost_usd=0.005)], ids=["none", "floor", "budget"])
def test_auto_works_where_the_cheapest_model_was_never_observed(policy, caplog):
    table = make_table().select(["large", "small"])
    quality = table.quality.copy()
    quality[:, 1] = np.nan
    table = OutcomeTable(table.query_ids, table.queries, table.models, quality=quality, cost_usd=table.cost_usd)
    with caplog.at_level(logging.ERROR):
        assert Router.fit(table, policy=policy).plan(["a"]).models != [None]


def test_a_forecast_that_knows_the_outcomes_scores_better_than_one_that_knows_nothing():
    table = make_table(100)
    knows = routed_score(as_forecast(table, table.quality), table, FLOOR, "large")
    average = np.tile(table.quality.mean(axis=0), (100, 1))
    assert 0 < knows < routed_score(as_forecast(table, average), table, FLOOR, "large") <= 1


def test_a_score_is_of_outcomes_never_of_the_forecast():
    table = make_table(100)
    boast = as_forecast(table, np.ones(table.quality.shape))  # says the cheapest is perfect
    assert routed_score(boast, table, Policy(min_quality=0.99), "large") == 1


def test_a_budget_alone_is_scored_by_the_quality_it_buys():
    table = make_table(100)
    score = routed_score(as_forecast(table, table.quality), table, Policy(max_mean_cost_usd=10.0), "large")
    assert score == pytest.approx(1 - table.quality.max(axis=1).mean())
    assert routed_score(as_forecast(table, table.quality), table, Policy(max_mean_cost_usd=0.0), "large") == 1


def test_no_floor_and_no_budget_are_scored_by_cost():
    table = make_table(100)
    score = routed_score(as_forecast(table, table.quality), table, Policy(), "large")
    assert score == pytest.approx(table.cost_usd.min(axis=1).mean() / table.cost_usd[:, 0].mean())


def test_cells_that_were_not_observed_count_neither_way():
    table = make_table(200, observed=0.6)
    full = make_table(200)
    forecast = as_forecast(full, full.quality)
    assert routed_score(forecast, table, FLOOR, "large") == pytest.approx(
        routed_score(forecast, full, FLOOR, "large"), abs=0.2
    )
