"""What a model with few outcomes is forecast: what its kin do, and more and more what it does itself."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import Model, ModelPool, OutcomeTable
from eccos_integrations.predictors import PREDICTORS, PriorPredictor
from eccos_integrations.predictors.history import PRIOR_STRENGTH, mean_of_kin
from eccos_integrations.predictors.kinship import ENOUGH, kinship
from tests.contracts.predictors import NEW
from tests.contracts.tables import embed, make_table, numbered, priced, with_gaps

KINDS = [kind for name, kind in PREDICTORS.items() if name != "trained"]


def model(name, usd=1.0, description=""):
    return Model(
        name=name, description=description, input_usd_per_million_tokens=usd, output_usd_per_million_tokens=4 * usd
    )


def kin_of(*models, outcomes=None, in_usd=None, typical=None):
    m = len(models)
    outcomes = np.full(m, 50.0) if outcomes is None else np.array(outcomes, dtype=float)
    in_usd = np.zeros(m, dtype=bool) if in_usd is None else np.array(in_usd)
    typical = np.full(m, 100.0) if typical is None else np.array(typical, dtype=float)
    return kinship(ModelPool(models), typical, in_usd, outcomes)


NAMES = st.lists(st.sampled_from(["gpt-4", "gpt-4-mini", "llama 8b", "llama 70b", "東京", "x", "ö", "7"]), unique=True,
                 min_size=1, max_size=6)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(names=NAMES, data=st.data())
def test_shares_sum_to_one_or_nobody_lends(names, data):
    prices = data.draw(st.lists(st.floats(0, 1e3), min_size=len(names), max_size=len(names)))
    outcomes = data.draw(st.lists(st.sampled_from([0, 1, 50, 1e6]), min_size=len(names), max_size=len(names)))
    in_usd = data.draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    models = [model(name, usd) for name, usd in zip(names, prices, strict=True)]
    kin = kin_of(*models, outcomes=outcomes, in_usd=in_usd)
    assert (kin >= 0).all()
    np.testing.assert_array_equal(np.diag(kin), 0)
    lenders = np.array(outcomes) > 0
    assert (kin[:, ~lenders] == 0).all()
    for j, row in enumerate(kin):
        someone = np.delete(lenders, j).any()
        assert row.sum() == pytest.approx(1.0 if someone else 0.0)


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(5)))
def test_another_order_of_the_pool_is_another_order_of_the_shares(order):
    models = [model("gpt-4", 10), model("gpt-4-mini", 0.2), model("llama 8b", 0.1), model("llama 70b"), model("x", 0)]
    outcomes = np.array([5.0, 0.0, 100.0, 20.0, 1.0])
    kin = kin_of(*models, outcomes=outcomes)
    turned = kin_of(*(models[i] for i in order), outcomes=outcomes[order])
    np.testing.assert_allclose(turned, kin[np.ix_(order, order)], atol=1e-12)


def test_models_that_nothing_tells_apart_lend_equal_shares():
    kin = kin_of(model("a"), model("b"), model("c"), model("d"))
    np.testing.assert_allclose(kin, (1 - np.eye(4)) / 3)


def test_the_nearer_the_price_the_more_is_lent():
    kin = kin_of(model("a", 1), model("b", 1.5), model("c", 6), model("d", 100))
    assert kin[0, 1] > kin[0, 2] > kin[0, 3] > 0
    spent = kin_of(model("a"), model("b"), model("c"), in_usd=[True] * 3, typical=[1, 1.2, 50])
    assert spent[0, 1] > spent[0, 2] > 0


def test_shared_words_of_name_and_description_lend_more():
    kin = kin_of(model("llama 8b"), model("llama 70b"), model("qwen 7b"))
    assert kin[0, 1] > kin[0, 2]
    told = kin_of(model("a", description="Good at Maths."), model("b", description="maths!"), model("c"))
    assert told[0, 1] > told[0, 2]


def test_who_was_observed_more_lends_more():
    kin = kin_of(model("a"), model("b"), model("c"), outcomes=[50, 100, 2])
    assert kin[0, 1] > 2 * kin[0, 2] > 0


def test_a_free_model_and_one_without_a_price_have_kin_too():
    kin = kin_of(model("free", 0.0), Model(name="unpriced"), model("dear", 50.0), in_usd=[False, True, False])
    assert np.isfinite(kin).all()
    np.testing.assert_allclose(kin.sum(axis=1), 1)


def test_the_mean_of_kin_is_that_of_who_was_observed_by_their_shares():
    kin = np.array([[0, 0.5, 0.5, 0], [1, 0, 0, 0], [0.2, 0.8, 0, 0], [0, 0, 0, 0]])
    total = np.array([[3.0, 8.0, 0.0, 5.0], [1.0, 0.0, 0.0, 0.0]])
    count = np.array([[10.0, 10.0, 0.0, 10.0], [1.0, 0.0, 0.0, 0.0]])
    means = mean_of_kin(kin, total, count)
    third = 1 / 3  # of three that were seen as often, each is a third of its own kin
    of_others = np.array([0.8, 0.3, 0.2 * 0.3 + 0.8 * 0.8, (0.3 + 0.8 + 0.5) / 3])
    own, share = np.array([0.3, 0.8, 0.0, 0.5]), np.array([third, third, 0, third])
    np.testing.assert_allclose(means[0], share * own + (1 - share) * of_others)
    np.testing.assert_allclose(means[1], 1.0)


def test_the_prior_is_the_mean_drawn_to_the_kin_where_outcomes_are_few():
    quality = np.array([[1.0, 0.2, 0.4], [1.0, 0.4, 0.4], [np.nan, 0.6, 0.4], [0.7, np.nan, np.nan]])
    table = numbered(quality)
    pool = ModelPool([model("m0", 1), model("m1", 2), model("m2", 50)])
    forecast = PriorPredictor(embed).fit(table, pool).forecast(["0000"])
    means, counts = np.nanmean(quality, axis=0), np.isfinite(quality).sum(axis=0)
    kin = kinship(pool, np.ones(3), np.array([True] * 3), counts.astype(float))
    own = counts / (counts + ENOUGH)
    own = own / own.sum()
    expected = (means * counts + PRIOR_STRENGTH * (own * means + (1 - own) * (kin @ means))) / (counts + PRIOR_STRENGTH)
    np.testing.assert_allclose(forecast.quality[0], expected)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_models_seen_as_often_keep_the_order_of_what_they_did(n):
    table = numbered(np.tile([0.9, 0.2], (n, 1)), np.tile([0.01, 0.001], (n, 1)))
    forecast = PriorPredictor(embed).fit(table, ModelPool.from_outcomes(table)).forecast(["0000"])
    assert forecast.quality[0, 0] > forecast.quality[0, 1]
    assert forecast.cost_usd[0, 0] > forecast.cost_usd[0, 1]


STEPS = [0, 1, 2, 3, 5, 8, 10, 11, 20, 21, 50, 51, 100, 101, 150, 200]


@cache
def history():
    """Two models that differ, and one that is better and says more than both."""
    table = make_table(200, models=("large", "medium", "star"))
    quality, tokens = table.quality.copy(), table.output_tokens.copy()
    quality[:, 2], tokens[:, 2] = 1.0, 3 * tokens[:, 2]
    return OutcomeTable(table.query_ids, table.queries, table.models, quality=quality, output_tokens=tokens,
                        input_tokens=table.input_tokens)  # fmt: skip


@cache
def forecasts(kind, way):
    """Of the star with 0, 1, ... outcomes: learnt by fits, or by one addition and updates."""
    table, pool = history(), priced("large", "medium", "star")
    if way == "fit":
        return [kind(embed).fit(with_gaps(table, "star", n), pool).forecast(NEW).select(["star"]) for n in STEPS]
    predictor = kind(embed).fit(table.select(["large", "medium"]), priced("large", "medium"))
    predictor.add(pool["star"])
    found = [predictor.forecast(NEW).select(["star"])]
    for n, more in pairwise(STEPS):
        predictor.update(table.take(range(n, more)).select(["star"]))
        found.append(predictor.forecast(NEW).select(["star"]))
    return found


@pytest.mark.parametrize("way", ["fit", "add"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
class TestFromNoOutcomesToMany:
    def test_quality_goes_from_that_of_the_kin_to_its_own(self, kind, way):
        mean = [forecast.quality.mean() for forecast in forecasts(kind, way)]
        others = history().quality[:, :2].mean(axis=0)
        assert others.min() < mean[0] < others.max()
        assert mean == sorted(mean)
        assert mean[-1] > 0.95

    def test_no_outcome_moves_the_forecast_far(self, kind, way):
        first, own = forecasts(kind, way)[0], history()
        gap = 1 - first.quality.mean()
        gap_in_tokens = np.log(own.output_tokens[:10, 2].mean() / first.output_tokens.mean())
        for (before, after), (n, more) in zip(pairwise(forecasts(kind, way)), pairwise(STEPS), strict=True):
            share = sum(2.5 / (seen + 5) for seen in range(n, more))
            assert np.abs(after.quality - before.quality).max() < gap * share + 0.03, (n, more)
            moved = np.abs(np.log(after.output_tokens / before.output_tokens)).max()
            assert moved < 1.2 * gap_in_tokens * share + 0.1, (n, more)

    def test_tokens_go_from_those_of_the_kin_to_its_own(self, kind, way):
        mean = np.array([forecast.output_tokens.mean() for forecast in forecasts(kind, way)])
        kin, own = history().output_tokens[:, :2].mean(), history().output_tokens[:, 2]
        assert abs(mean[0] / kin - 1) < 0.25
        for n, tokens in zip(STEPS[1:], mean[1:], strict=True):
            assert kin < tokens < 1.15 * own[:n].mean(), n
        assert abs(mean[-1] / own.mean() - 1) < 0.1

    def test_the_forecast_grows_surer(self, kind, way):
        std = [forecast.quality_std.mean() for forecast in forecasts(kind, way)]
        few = [std[STEPS.index(n)] for n in (0, 1, 10, 100, 200)]
        # Up to a tenth: a weight on like queries is not a count, and may overshoot where the penalty is small.
        assert all(after <= 1.1 * before for before, after in pairwise(few))
        assert few[3] < few[2] < few[0]
        assert std[0] > 1.2 * std[-1]
