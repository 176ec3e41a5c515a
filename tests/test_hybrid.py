"""The blend: a weighted mean of what its parts say."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError, ModelPool
from eccos_integrations.predictors import PREDICTORS, HybridPredictor
from eccos_integrations.predictors.hybrid import DEFAULT
from tests.contracts.predictors import NEW, assert_equal
from tests.contracts.tables import embed, make_table, priced

TABLE = make_table(80, observed=0.8)
POOL = ModelPool.from_outcomes(TABLE)
PARTS = ["prior", "ridge", "trees", "retrieval", "clusters"]


def fitted(predictor):
    return predictor.fit(TABLE, POOL)


@pytest.mark.parametrize("part", PARTS)
def test_a_blend_of_one_is_that_one(part):
    blend, alone = fitted(HybridPredictor(embed, [part])), fitted(PREDICTORS[part](embed))
    assert_equal(blend.forecast(NEW), alone.forecast(NEW), tolerance=1e-9)
    for predictor in (blend, alone):
        predictor.update(make_table(20, seed=3))
        predictor.add(*priced("new"), make_table(12, models=["new"], seed=4))
        predictor.remove("medium")
    assert_equal(blend.forecast(NEW), alone.forecast(NEW), tolerance=1e-9)


@settings(deadline=None, max_examples=8)
@given(gamma=st.floats(0, 1), delta=st.floats(0.01, 0.99))
def test_the_quality_of_a_blend_is_the_weighted_mean_of_its_parts(gamma, delta):
    blend = fitted(
        HybridPredictor(embed, {"ridge": gamma, "clusters": 1 - gamma}, {"ridge": delta, "clusters": 1 - delta})
    )
    ridge, clusters = (fitted(PREDICTORS[name](embed)).forecast(NEW).quality for name in ("ridge", "clusters"))
    # The kin's share of the rest is not linear; where models have many outcomes it is small.
    np.testing.assert_allclose(blend.forecast(NEW).quality, gamma * ridge + (1 - gamma) * clusters, atol=0.02)
    estimate = blend.estimate(blend.see(NEW, blend.arrays()), blend.arrays())
    parts = {name: fitted(PREDICTORS[name](embed)) for name in ("ridge", "clusters")}
    own = {name: part.estimate(part.see(NEW, part.arrays()), part.arrays()) for name, part in parts.items()}
    for v, share in enumerate((gamma, delta)):
        np.testing.assert_allclose(
            estimate.total[:, v],
            share * own["ridge"].total[:, v] + (1 - share) * own["clusters"].total[:, v],
            atol=1e-9,
        )


def test_names_alone_weigh_the_same_and_order_does_not_matter():
    assert HybridPredictor(embed).parts == dict.fromkeys(DEFAULT, 1 / len(DEFAULT))
    one = fitted(HybridPredictor(embed, ["ridge", "clusters"]))
    other = fitted(HybridPredictor(embed, {"clusters": 3, "ridge": 3}))
    assert_equal(one.forecast(NEW), other.forecast(NEW), tolerance=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from(PARTS), st.floats(0, 1e6), min_size=1).filter(lambda w: sum(w.values()) > 1e-6))
def test_weights_are_shares_that_survive_being_written_down(weights):
    blend = HybridPredictor(embed, weights)
    assert sum(blend.parts.values()) == pytest.approx(1)
    written = json.loads(json.dumps(blend.settings(), sort_keys=True))
    again = HybridPredictor(embed, **written)
    assert again.parts == pytest.approx(blend.parts, rel=1e-12)


def test_a_restored_blend_forecasts_the_same():
    blend = fitted(HybridPredictor(embed, {"ridge": 0.1, "clusters": 0.2, "prior": 0.7}, {"trees": 1}))
    written = json.loads(json.dumps(blend.settings(), sort_keys=True))
    restored = HybridPredictor.restore(written, blend.arrays(), blend.encoder, blend.pool)
    assert_equal(restored.forecast(NEW), blend.forecast(NEW), tolerance=1e-12)


def test_blends_of_some_parts_are_forecast_from_one_look_at_the_queries():
    blend = fitted(HybridPredictor(embed))
    both, one = blend.forecasts(NEW, [("ridge", "clusters"), ("trees",)])
    np.testing.assert_allclose(one.quality, fitted(HybridPredictor(embed, ["trees"])).forecast(NEW).quality, atol=1e-9)
    np.testing.assert_allclose(
        both.quality, fitted(HybridPredictor(embed, ["ridge", "clusters"])).forecast(NEW).quality, atol=1e-9
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"parts": ["ridge", "unheard"]}, "unheard"),
        ({"parts": ["hybrid"]}, "hybrid"),
        ({"parts": []}, "parts"),
        ({"parts": {"ridge": 0.0}}, "parts"),
        ({"parts": {"ridge": 2.0, "trees": -1.0}}, "parts"),
        ({"parts": {"ridge": np.nan}}, "parts"),
        ({"parts": ["ridge"], "spend": {"unheard": 1.0}}, "spend"),
    ],
)
def test_weights_that_cannot_be_are_refused_by_field(arguments, match):
    with pytest.raises(ConfigError, match=match):
        HybridPredictor(**arguments)
