import threading

import numpy as np
import pytest

from eccos_integrations import ConfigError, Model, ModelPool, OutcomeTable, Policy, Router
from eccos_integrations.predictors import Forecast
from tests.contracts.tables import embed, make_table, priced, without

QUERIES = [f"sum of two numbers, case {i}" for i in range(60)]
BEST = Policy(min_quality=0.95, relative_to="best")


def outcomes(quality, cost_usd, models=("a", "b")):
    ids = [f"text {i}" for i in range(len(quality))]
    return OutcomeTable(ids, ids, list(models), quality=quality, cost_usd=cost_usd)


class Own:
    """A predictor of one's own: the least that is asked of it."""

    def __init__(self, quality=0.5, cost_usd=0.001):
        self.given = {"quality": quality, "cost_usd": cost_usd}

    def fit(self, table, pool, *, seed=0):
        self.models = pool.names

    def forecast(self, queries):
        shape = (len(queries), len(self.models))
        cells = {
            name: value(*shape) if callable(value) else np.full(shape, value) for name, value in self.given.items()
        }
        unknown = np.full(shape, np.nan)
        return Forecast(self.models, **cells, input_tokens=unknown, output_tokens=unknown, latency_s=unknown)


@pytest.mark.parametrize(
    ("quality", "cost_usd", "best"),
    [
        ([[0.5, 0.6]] * 4, [[1, 2]] * 4, "b"),
        ([[0.6, 0.6]] * 4, [[2, 1]] * 4, "b"),  # a tie goes to the cheaper
        ([[0.6, 0.6]] * 4, [[1, 2]] * 4, "a"),
        # a is better where both answered, b on its own easy queries
        ([[0.6, 0.5], [0.6, 0.5], [np.nan, 1.0], [np.nan, 1.0]], [[2, 1]] * 4, "a"),
        # nothing in common: each by its own mean
        ([[0.6, np.nan], [0.6, np.nan], [np.nan, 0.7], [np.nan, 0.7]], [[1, 2]] * 4, "b"),
        ([[np.nan, 0.1]] * 4, [[1, 2]] * 4, "b"),  # never observed is never best
    ],
)
def test_the_best_model_is_the_one_best_where_all_answered_and_the_cheaper_of_equals(quality, cost_usd, best):
    assert Router.fit(outcomes(quality, cost_usd), predictor="prior").best == best


def test_a_model_outside_the_pool_is_never_the_best():
    table = outcomes([[0.1, 0.2, 1.0]] * 4, [[1, 2, 3]] * 4, "abc")
    router = Router.fit(table, ModelPool.from_outcomes(table.select(["b", "a"])), predictor="prior")
    assert (router.best, router.models) == ("b", ["b", "a"])


def test_columns_stand_in_the_order_of_the_pool():
    table = make_table()
    pool = ModelPool([ModelPool.from_outcomes(table)[name] for name in ("small", "large", "medium")])
    forecast = Router.fit(table, pool, predictor="prior").forecast(["a"])
    assert forecast.models == ["small", "large", "medium"]
    assert forecast.quality[0].argmax() == 1


def test_a_new_model_with_prices_can_be_routed_to():
    table = make_table()
    for known in (priced("large", "medium", "small"), ModelPool.from_outcomes(without(table, "input_tokens"))):
        pool = ModelPool([*known, *priced("free", usd=0.0)])
        assert Router.fit(table, pool, Policy(), predictor="prior").plan(["a"]).models == ["free"]


def test_a_model_whose_cost_was_seen_once_can_be_routed_to():
    table = make_table()
    cost, tokens = table.cost_usd.copy(), table.output_tokens.copy()
    cost[1:, 2] = tokens[:, 2] = np.nan
    seen = OutcomeTable(table.query_ids, table.queries, table.models, quality=table.quality, cost_usd=cost,
                        input_tokens=table.input_tokens, output_tokens=tokens)  # fmt: skip
    assert Router.fit(seen, predictor="prior").plan(["a"]).models != [None]


def test_a_table_with_one_outcome_says_that_it_is_too_small():
    table = outcomes([[1.0, np.nan], [np.nan, np.nan]], [[1, 2]] * 2)
    with pytest.raises(ConfigError, match="table"):
        Router.fit(table, predictor="prior")


@pytest.mark.parametrize(
    ("table", "pool", "word"),
    [
        (make_table().select(["large"]), None, "one model"),
        (make_table(1), None, "one model|distinct query"),
        (make_table(), priced("nobody", "else"), "none of"),
        (make_table(), priced("large"), "one model"),
        (make_table(), ModelPool([*priced("large"), Model(name="new")]), "'new' has no observed cost"),
        (without(make_table(), "cost_usd"), None, "no cost of model 'large'"),
        (without(make_table(), "cost_usd", "output_tokens"), priced("large", "small"), "output_tokens"),
    ],
    ids=["one model", "one query", "strangers", "pool of one", "no price", "no cost", "no tokens"],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_refused_in_words(table, pool, word):
    with pytest.raises(ConfigError, match=word):
        Router.fit(table, pool)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("predictor", "oracle"), ("predictor", 3), ("predictor", None), ("encoder", 3), ("encoder", None),
     ("policy", Policy(capacity={"nobody": 1}))],
)  # fmt: skip
def test_an_unknown_name_or_object_is_refused(argument, value):
    with pytest.raises(ConfigError, match=argument if argument != "policy" else "nobody"):
        Router.fit(make_table(), **{argument: value})


def test_a_function_can_be_the_encoder():
    router = Router.fit(make_table(), predictor="retrieval", encoder=embed)
    assert router.predictor.encoder.name == "callable"
    assert router.plan(QUERIES).floor_met


def test_a_predictor_of_ones_own_needs_only_fit_and_forecast():
    router = Router.fit(make_table(), predictor=Own(), policy=Policy(min_quality=0.5))
    assert router.predictor.forecast(QUERIES).quality.mean() == 0.5
    observed = make_table().quality.mean()
    assert 0.5 < router.plan(QUERIES).mean_quality < observed  # corrected by what it was found to be wrong by
    assert router.route("a").model in router.models
    assert "Own" in repr(router)


def test_a_predictor_that_cannot_be_copied_for_cross_validation_is_refused_in_words():
    class Locked(Own):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(ConfigError, match="cop"):
        Router.fit(make_table(), predictor=Locked())


@pytest.mark.parametrize("name", ["quality", "cost_usd"])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda n, _: np.full(n, 0.5),
        lambda n, m: np.full((n, m - 1), 0.5),
        lambda n, m: np.full((n, m + 1), 0.5),
        lambda n, m: np.full((n + 1, m), 0.5),
        lambda n, m: np.full((m, n), 0.5),
        lambda n, m: np.full((n, m), np.nan),
        lambda n, m: np.full((n, m), -0.1),
        lambda n, m: np.full((n, m), np.inf),
        lambda *_: None,
    ],
    ids=["one axis", "too few", "too many", "rows", "turned", "NaN", "negative", "infinite", "nothing"],
)
def test_a_forecast_that_cannot_be_planned_with_is_refused_by_name(name, wrong):
    with pytest.raises(ConfigError, match=name):
        Router.fit(make_table(), predictor=Own(**{name: wrong}))


def test_a_forecast_without_the_pools_models_is_refused():
    class Stranger(Own):
        def fit(self, table, pool, *, seed=0):
            self.models = ["x", "y", "z"]

    with pytest.raises(ConfigError, match="no column for"):
        Router.fit(make_table(), predictor=Stranger())


def test_the_same_seed_gives_the_same_router():
    table = make_table()
    one, other = (Router.fit(table, policy=BEST, seed=3) for _ in range(2))
    assert one.trials == other.trials
    assert one.plan(QUERIES).models == other.plan(QUERIES).models
    assert [one.route(query).model for query in QUERIES] == [other.route(query).model for query in QUERIES]
