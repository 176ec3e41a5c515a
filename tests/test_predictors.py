import numpy as np
import pytest

from eccos_integrations import ConfigError, EccosError, Forecast, ModelPool, OutcomeTable
from eccos_integrations.predictors import PriorPredictor, RetrievalPredictor, TrainedPredictor
from eccos_integrations.predictors.base import PRIOR_STRENGTH
from tests.contracts.predictors import PredictorContract
from tests.contracts.processes import run_python
from tests.contracts.tables import embed, make_table

KINDS = [PriorPredictor, RetrievalPredictor, TrainedPredictor]


class TestPrior(PredictorContract):
    kind = PriorPredictor


class TestRetrieval(PredictorContract):
    kind = RetrievalPredictor


class TestTrained(PredictorContract):
    kind = TrainedPredictor


def points(seed, n, dimensions=8):
    """Random unit vectors, and an encoder that finds them by the number in the text."""
    vectors = np.random.default_rng(seed).normal(size=(n, dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, lambda texts: vectors[[int(text) for text in texts]]


def numbered(quality, cost_usd=None):
    n, m = quality.shape
    cost_usd = np.ones((n, m)) if cost_usd is None else cost_usd
    ids = [f"q{i:04}" for i in range(n)]
    return OutcomeTable(
        ids, [str(i) for i in range(n)], [f"m{j}" for j in range(m)], quality=quality, cost_usd=cost_usd
    )


def test_the_prior_is_the_mean_drawn_to_the_pool_where_outcomes_are_few():
    quality = np.array([[1.0, 0.2], [1.0, 0.4], [np.nan, 0.6], [0.7, np.nan]])
    cost = np.array([[1.0, 5.0], [np.nan, 7.0], [3.0, 9.0], [2.0, 3.0]])
    table = numbered(quality, cost)
    forecast = PriorPredictor().fit(table, ModelPool.from_outcomes(table)).forecast(["?"])

    def shrunk(means, counts):
        return (np.multiply(means, counts) + PRIOR_STRENGTH * np.mean(means)) / (np.array(counts) + PRIOR_STRENGTH)

    np.testing.assert_allclose(forecast.quality[0], shrunk([0.9, 0.4], [3, 3]))
    np.testing.assert_allclose(forecast.cost_usd[0], shrunk([2, 6], [3, 4]))


@pytest.mark.parametrize(("n", "k"), [(200, 16), (200, 1), (10, 16), (40, 100)])
def test_retrieval_equals_a_plain_search_over_all_neighbours(n, k):
    vectors, encoder = points(seed=n + k, n=n + 50)
    rng = np.random.default_rng(0)
    quality = np.where(rng.random((n, 3)) < 0.8, rng.random((n, 3)), np.nan)
    cost = rng.random((n, 3))
    table = numbered(quality, cost)
    predictor = RetrievalPredictor(encoder, k=k, strength=3.0).fit(table, ModelPool.from_outcomes(table))
    prior = PriorPredictor(encoder).fit(table, ModelPool.from_outcomes(table)).forecast(["0"])
    queries = [str(i) for i in range(n, n + 50)]
    expected_quality, expected_cost = [], []
    for query in vectors[n:]:
        similarity = vectors[:n] @ query
        near = np.argsort(-similarity)[:k]
        weight = similarity[near].clip(min=0)[:, None]
        for outcomes, start, found in (
            (quality, prior.quality, expected_quality),
            (cost, prior.cost_usd, expected_cost),
        ):
            known = np.isfinite(outcomes[near])
            total = (weight * np.where(known, outcomes[near], 0)).sum(axis=0) + 3 * start[0]
            found.append(total / ((weight * known).sum(axis=0) + 3))
    forecast = predictor.forecast(queries)
    np.testing.assert_allclose(forecast.quality, expected_quality, atol=1e-4)
    np.testing.assert_allclose(forecast.cost_usd, expected_cost, atol=1e-4)


def test_retrieval_leans_to_the_outcome_of_an_identical_past_query():
    _, encoder = points(seed=1, n=80)
    table = numbered((np.random.default_rng(2).random((80, 3)) < 0.6).astype(float))
    pool = ModelPool.from_outcomes(table)
    forecast = RetrievalPredictor(encoder, k=1, strength=1.0).fit(table, pool).forecast(table.queries)
    lean = forecast.quality - PriorPredictor(encoder).fit(table, pool).forecast(table.queries).quality
    assert lean[table.quality == 1].mean() > 0.1
    assert lean[table.quality == 0].mean() < -0.1


def test_retrieval_finds_what_one_text_says_and_no_other_does():
    quality = np.tile([[0.0, 0.5]], (100, 1))
    quality[42, 0] = 1.0
    table = numbered(quality)
    _, encoder = points(seed=0, n=100, dimensions=50)
    predictor = RetrievalPredictor(encoder, k=1, strength=1.0).fit(table, ModelPool.from_outcomes(table))
    assert predictor.forecast([str(i) for i in range(100)]).quality[:, 0].argmax() == 42


def test_retrieval_of_a_text_like_no_other_is_the_prior():
    table = make_table()
    pool = ModelPool.from_outcomes(table)
    unlike = ["žluťoučký kůň", ""]
    found = RetrievalPredictor().fit(table, pool).forecast(unlike)
    np.testing.assert_allclose(found.quality, PriorPredictor().fit(table, pool).forecast(unlike).quality)


def test_trained_learns_which_model_is_good_at_what():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 400)
    vectors = np.column_stack([kind, 1 - kind]) + rng.normal(size=(400, 2)) * 0.2
    quality = np.column_stack([kind, 1 - kind, np.full(400, 0.5)]).astype(float)
    length = np.where(kind[:, None] == 1, [100.0, 400.0, 50.0], [400.0, 100.0, 50.0])
    table, rest = numbered(quality, length).take(range(300)), numbered(quality, length).take(range(300, 400))

    def forecast(kind_of):
        predictor = kind_of(lambda texts: vectors[[int(text) for text in texts]])
        return predictor.fit(table, ModelPool.from_outcomes(table)).forecast(rest.queries)

    trained, prior = forecast(TrainedPredictor), forecast(PriorPredictor)
    assert np.mean((trained.quality - rest.quality) ** 2) < 0.2 * np.mean((prior.quality - rest.quality) ** 2)
    assert np.mean((trained.cost_usd - rest.cost_usd) ** 2) < 0.2 * np.mean((prior.cost_usd - rest.cost_usd) ** 2)


def test_trained_with_another_seed_is_another_model_of_the_same_data():
    table = make_table(80)
    pool = ModelPool.from_outcomes(table)
    one, other = (TrainedPredictor().fit(table, pool, seed=seed).forecast(table.queries).quality for seed in (0, 1))
    assert 0 < np.abs(one - other).max() < 0.5


def test_learning_without_torch_says_how_to_get_it():
    code = """
from eccos_integrations import MissingExtraError, ModelPool
from eccos_integrations.predictors import TrainedPredictor
from tests.contracts.processes import run_python
from tests.contracts.tables import make_table
table = make_table()
try:
    TrainedPredictor().fit(table, ModelPool.from_outcomes(table))
except MissingExtraError as error:
    print(error)
"""
    said = run_python(code, hidden=["torch"])
    assert said == "torch is not installed; run: pip install 'eccos-integrations[neural]'\n"


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": -3}, {"strength": 0.0}, {"strength": -1.0}, {"strength": np.nan}])
def test_retrieval_refuses_settings_that_cannot_be(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        RetrievalPredictor(**settings)


@pytest.mark.parametrize("settings", [{"width": 0}, {"buckets": 1}, {"steps": 0}])
def test_trained_refuses_settings_that_cannot_be(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        TrainedPredictor(**settings)


@pytest.mark.parametrize("kind", KINDS)
def test_forecasting_before_fitting_is_refused_in_words(kind):
    with pytest.raises(EccosError, match="fit"):
        kind().forecast(["?"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_that_changes_its_mind_about_dimensions_is_refused_in_words(kind):
    table = make_table()
    widths = iter(range(4, 100))
    predictor = kind(lambda texts: np.ones((len(texts), next(widths))))
    predictor.fit(table, ModelPool.from_outcomes(table))
    if kind is not PriorPredictor:  # which looks at no vector
        with pytest.raises(ConfigError, match=r"encoder.*dimensions"):
            predictor.forecast(["a text it has not seen"])


def test_a_forecast_gives_the_columns_asked_for():
    cells = np.array([[0.1, 0.2], [0.3, 0.4]])
    forecast = Forecast(["a", "b"], cells, cells, cells, cells, cells)
    assert forecast.select(["b", "a"]).quality.tolist() == [[0.2, 0.1], [0.4, 0.3]]
    with pytest.raises(ConfigError, match="'c'"):
        forecast.select(["a", "c"])


def test_concatenated_forecasts_stand_in_the_order_of_the_table():
    def part(*values):
        cells = np.array(values, dtype=float)[:, None]
        return Forecast(["a"], cells, cells, cells, cells, cells)

    whole = Forecast.concatenate([part(0.2, 0.0), part(0.1, 0.3)], [np.array([2, 0]), np.array([1, 3])])
    assert whole.quality[:, 0].tolist() == [0.0, 0.1, 0.2, 0.3]


@pytest.mark.parametrize("kind", KINDS)
def test_a_forecast_and_a_predictor_show_no_text(kind):
    table = make_table()
    predictor = kind(embed).fit(table, ModelPool.from_outcomes(table))
    assert repr(predictor.forecast(table.queries)) == "Forecast(40 queries x 3 models)"
    assert "proof" not in repr(predictor)
