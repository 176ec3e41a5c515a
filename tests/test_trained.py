"""ECCOS-T: what the networks learn, from what, and when they stop."""

import logging

import numpy as np
import pytest

from eccos_integrations import ConfigError, Forecast, Model, ModelPool, OutcomeTable
from eccos_integrations.predictors.base import routed_cost_of
from eccos_integrations.predictors.history import QUALITY, SPEND
from eccos_integrations.predictors.network import Lesson, one_thread, training
from eccos_integrations.predictors.prior import PriorPredictor
from eccos_integrations.predictors.routed import routed_cost
from eccos_integrations.predictors.trained import EVERY, TIE, TrainedPredictor, chosen_look
from tests.contracts.processes import run_python
from tests.contracts.tables import make_table, numbered, points, priced, twice

FILLER = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "other", "animals", "wonder"]


def wordy(n, seed=0):
    """The small model is right on short queries only, whose answers are long; the large one costs tenfold."""
    rng = np.random.default_rng(seed)
    lengths = np.where(rng.random(n) < 0.5, rng.integers(3, 7, n), rng.integers(30, 60, n))
    queries = [" ".join(rng.choice(FILLER, length)) for length in lengths]
    short = lengths < 10
    quality = np.column_stack([rng.random(n) < 0.95, np.where(short, rng.random(n) < 0.95, rng.random(n) < 0.1)])
    tokens = np.where(short, 200, 50)[:, None] * np.exp(0.3 * rng.normal(size=(n, 2)))
    return OutcomeTable([f"q{i:04}" for i in range(n)], queries, ["large", "small"], quality=quality,
                        cost_usd=tokens * [10, 1] / 1e6, output_tokens=tokens)  # fmt: skip


def fitted(table, encoder="lexical", pool=None, seed=0, **settings):
    pool = pool or ModelPool.from_outcomes(table)
    return TrainedPredictor(encoder, **settings).fit(table, pool, seed=seed)


class Seen(TrainedPredictor):
    """Keeps what it was given to learn from."""

    def learn(self, history, pool, arrays, seed):
        self.given = history, pool, dict(arrays)
        return super().learn(history, pool, arrays, seed)


def seen(table, encoder="lexical", seed=0, **settings):
    predictor = Seen(encoder, **settings).fit(table, ModelPool.from_outcomes(table), seed=seed)
    return predictor, *predictor.given


def lesson(n=100, m=3, dimensions=4, buckets=2, networks=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dimensions))
    return {
        "x": x / np.linalg.norm(x, axis=1, keepdims=True),
        "quality": (rng.random((n, m)) < 0.5).astype(float),
        "bucket": rng.integers(0, buckets, (n, m)),
        "words": np.zeros((m, 1)),
        "fold": np.arange(n) % networks,
        "bias": np.zeros((networks, m)),
        "length_bias": np.zeros(buckets),
        "tilt": np.linspace(-1, 1, buckets),
    }


def last(**given):
    with one_thread():
        return list(training(Lesson(**given), width=4, steps=60, every=60, seed=0))[-1][1]


def test_which_queries_the_small_model_can_do_is_learnt_from_text():
    table, new = wordy(300), wordy(200, seed=1)
    forecast = fitted(table).forecast(new.queries)
    prior = PriorPredictor().fit(table, ModelPool.from_outcomes(table)).forecast(new.queries)

    def error(of):
        return np.mean((of.quality - new.quality) ** 2)

    def cost(of):
        return routed_cost(of.quality, of.cost_usd, new.quality, new.cost_usd, best=0)

    assert error(forecast) < 0.7 * error(prior)
    assert cost(forecast) < 0.7 * cost(prior)
    assert np.corrcoef(np.log(forecast.cost_usd[:, 1]), np.log(new.cost_usd[:, 1]))[0, 1] > 0.8


def test_the_same_seed_gives_the_same_forecast_and_another_seed_nearly_the_same():
    table = wordy(120)
    one, again, other = (fitted(table, seed=seed).forecast(table.queries) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.quality, again.quality)
    np.testing.assert_array_equal(one.cost_usd, again.cost_usd)
    assert 0 < np.abs(one.quality - other.quality).max() < 0.3


def test_training_leaves_the_threads_of_torch_as_they_were():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        fitted(make_table(), steps=20)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_fresh_process_forecasts_the_same_without_torch(tmp_path):
    table = make_table()
    predictor = fitted(table, steps=40)
    np.savez(tmp_path / "encoder.npz", allow_pickle=False, **predictor.encoder.arrays())
    np.savez(tmp_path / "predictor.npz", allow_pickle=False, **predictor.arrays())
    said = run_python(
        """
import sys
import numpy as np
from eccos_integrations import ModelPool
from eccos_integrations.encoders import LexicalEncoder
from eccos_integrations.predictors.trained import TrainedPredictor
from tests.contracts.tables import make_table
table, folder = make_table(), sys.argv[1]
encoder = LexicalEncoder.restore({}, dict(np.load(f"{folder}/encoder.npz")))
arrays = dict(np.load(f"{folder}/predictor.npz"))
predictor = TrainedPredictor.restore({"steps": 40}, arrays, encoder, ModelPool.from_outcomes(table))
print(repr(float(predictor.forecast(table.queries).quality.sum())), "torch" in sys.modules)
""",
        tmp_path,
    )
    total, torch_loaded = said.split()
    assert torch_loaded == "False"
    assert float(total) == pytest.approx(predictor.forecast(table.queries).quality.sum(), abs=1e-9)


def test_learning_without_torch_says_how_to_get_it():
    said = run_python(
        """
from eccos_integrations import MissingExtraError, ModelPool
from eccos_integrations.predictors.trained import TrainedPredictor
from tests.contracts.tables import make_table
table = make_table()
try:
    TrainedPredictor().fit(table, ModelPool.from_outcomes(table))
except MissingExtraError as error:
    print(error)
""",
        hidden=["torch"],
    )
    assert said == "torch is not installed; run: pip install 'eccos-integrations[neural]'\n"


def test_progress_is_logged_and_says_nothing_of_the_queries(caplog):
    table = wordy(60)
    with caplog.at_level(logging.INFO, logger="eccos"):
        fitted(table, steps=3 * EVERY)
    said = [record.getMessage() for record in caplog.records if "trained" in record.getMessage()]
    assert [message.split(",")[0] for message in said] == [
        f"trained: step {step} of at most 60" for step in (0, 20, 40, 60)
    ]
    assert not any(word in message.split() for message in said for word in {*FILLER, *table.query_ids})


def test_what_fell_outside_the_spend_range_is_a_fifth_and_the_range_is_as_wide_as_the_model_is_noisy():
    rng = np.random.default_rng(0)
    vectors, encoder = points(seed=0, n=800, dimensions=6)
    noise = np.array([0.1, 1.0])
    cost = np.exp(vectors[:, :1] + noise * rng.normal(size=(800, 2)))
    table = numbered((rng.random((800, 2)) < 0.5).astype(float), cost)
    table = OutcomeTable(table.query_ids, table.queries, table.models, quality=table.quality, cost_usd=cost * 1e-4,
                         output_tokens=100 * cost)  # fmt: skip
    forecast = fitted(table.take(range(500)), encoder, priced("m0", "m1")).forecast(table.queries[500:])
    assert (forecast.output_tokens_p10 <= forecast.output_tokens_p90).all()
    tokens = table.output_tokens[500:]
    assert 0.04 < (tokens < forecast.output_tokens_p10).mean() < 0.16
    assert 0.04 < (tokens > forecast.output_tokens_p90).mean() < 0.16
    width = np.log(forecast.output_tokens_p90 / forecast.output_tokens_p10).mean(axis=0)
    assert width[1] > 1.5 * width[0]


def test_the_range_of_a_model_without_outcomes_lies_around_its_forecast():
    table = make_table(60)
    forecast = fitted(table, pool=priced(*table.models, "new"), steps=40).forecast(table.queries)
    assert np.isfinite(forecast.output_tokens_p10).all()
    assert (forecast.output_tokens_p10 <= forecast.output_tokens).all()
    assert (forecast.output_tokens <= forecast.output_tokens_p90).all()


def test_graded_quality_is_learnt_as_it_is():
    vectors, encoder = points(seed=3, n=400, dimensions=4)
    quality = 0.6 + 0.2 * vectors[:, :1] * [1, -1]
    forecast = fitted(numbered(quality), encoder).forecast([f"{i:04}" for i in range(400)])
    assert np.mean((forecast.quality - quality) ** 2) < 0.3 * quality.var()


@pytest.mark.parametrize("field", ["quality", "bucket"])
def test_a_query_nobody_was_seen_to_answer_teaches_nothing(field):
    given = lesson()
    unseen = np.arange(100) % 10 == 7
    given["quality"][unseen] = np.nan
    given["bucket"][unseen] = -1
    turned = given | {"x": np.where(unseen[:, None], -given["x"], given["x"])}
    before, after = last(**given), last(**turned)
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name], err_msg=name)
    shown = turned | {field: np.where(unseen[:, None], 1, given[field])}
    assert np.abs(last(**shown)["projection"] - before["projection"]).max() > 0


def test_what_was_not_observed_is_not_taken_for_wrong():
    vectors, encoder = points(seed=1, n=300)
    right = vectors[:, 0] > 0
    quality = np.column_stack([np.where(right, 1.0, np.nan), right.astype(float)])
    forecast = fitted(numbered(quality), encoder).forecast([f"{i:04}" for i in range(300)])
    assert forecast.quality[:, 0].min() > 0.85
    assert forecast.quality[~right, 1].mean() < 0.5


def test_a_network_is_blind_to_its_own_fold():
    given = lesson()
    fold = given["fold"] == 0
    swapped = given["quality"].copy()
    swapped[fold] = swapped[fold][::-1]  # other outcomes of the same mean and variance
    before, after = last(**given), last(**given | {"quality": swapped})
    for name in ("projection", "embedding", "bias"):
        np.testing.assert_allclose(before[name][0], after[name][0], atol=1e-4, err_msg=name)
        assert np.abs(before[name][1] - after[name][1]).max() > 1e-3, name


def test_held_out_forecasts_of_a_text_asked_twice_do_not_know_either_outcome():
    _, encoder = points(seed=5, n=120)
    table = twice(numbered((np.random.default_rng(0).random((120, 2)) < 0.5).astype(float)))
    predictor, history, *_ = seen(table, encoder)
    total = predictor.held_out(history, predictor.arrays()).total
    again = np.array(["again" in name for name in sorted(table.query_ids)])
    one, other = total[~again], total[again]
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("costs", "look"),
    [
        ([1.0], 0),
        ([1.0] * 12, 11),  # nothing to choose between: the most trained
        ([1.0, 0.9, 0.7, 0.5, 0.3, 0.3, 0.3, 0.5, 0.7, 0.9, 1.0], 5),
        ([0.9, 0.7, 0.5, 0.4, 0.4, 0.4, 0.1, 1.0, 1.0, 0.7, 0.7, 0.7], 4),  # one lucky look is not enough
        ([0.9, 0.7, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], 8),
    ],
)
def test_the_look_chosen_is_the_last_about_which_routing_costs_least(costs, look):
    assert chosen_look(costs) == look


def test_training_stops_where_routing_by_held_out_forecasts_costs_least(caplog):
    table = wordy(200)
    with caplog.at_level(logging.INFO, logger="eccos"):
        predictor, history, pool, _ = seen(table)
    costs = [float(record.getMessage().split()[-1]) for record in caplog.records if "trained" in record.getMessage()]
    arrays = predictor.arrays()
    kept = routed_cost_of(predictor.held_out(history, arrays), history, pool, arrays)
    assert kept == pytest.approx(costs[chosen_look(costs)], abs=1e-3)
    assert kept < costs[0] - TIE  # better than to learn nothing


def test_a_model_with_few_outcomes_learns_from_models_described_alike():
    rng = np.random.default_rng(0)
    vectors, encoder = points(seed=2, n=600, dimensions=4)
    verse = vectors[:, 0] > 0
    skills = {"a0": "verse", "a1": "verse", "a2": "verse", "b0": "sums", "b1": "sums", "b2": "sums", "new": "sums"}
    good = np.column_stack([verse if skill == "verse" else ~verse for skill in skills.values()])
    quality = (rng.random(good.shape) < np.where(good, 0.9, 0.1)).astype(float)
    quality[10:400, -1] = np.nan
    texts = [f"{i:04}" for i in range(600)]
    table = OutcomeTable(texts[:400], texts[:400], list(skills), quality=quality[:400], cost_usd=np.ones((400, 7)))

    def gap(described):
        prices = {"input_usd_per_million_tokens": 1.0, "output_usd_per_million_tokens": 1.0}
        pool = ModelPool([Model(name=name, description=skill if described else "", **prices)
                          for name, skill in skills.items()])  # fmt: skip
        forecast = fitted(table, encoder, pool).forecast(texts[400:])
        new = forecast.quality[:, forecast.models.index("new")]
        return new[~verse[400:]].mean() - new[verse[400:]].mean()

    assert gap(described=True) > gap(described=False) + 0.05


def test_the_networks_count_as_far_as_a_model_was_observed():
    quality = np.full((200, 4), np.nan)
    for j, outcomes in enumerate((0, 1, 20, 200)):
        quality[:outcomes, j] = np.arange(outcomes) % 2
    _, encoder = points(seed=0, n=200)
    texts, tokens = [f"{i:04}" for i in range(200)], np.where(np.isfinite(quality), 100.0, np.nan)
    models = ["m0", "m1", "m2", "m3"]
    table = OutcomeTable(texts, texts, models, quality=quality, output_tokens=tokens)
    predictor = fitted(table, encoder, priced(*models), steps=20)
    weight = predictor.estimate(np.zeros((1, predictor.arrays()["projection"].shape[-2])), predictor.arrays()).weight
    for measure in (QUALITY, SPEND):
        assert weight[0, measure, 0] == 0
        assert (np.diff(weight[0, measure]) > 0).all()
        assert 0.9 < weight[0, measure, 3] < 1


def test_more_outcomes_move_the_mean_and_leave_the_networks_alone():
    table = make_table(60)
    predictor = fitted(table, steps=40)
    before, networks = predictor.forecast(table.queries), predictor.arrays()["projection"]
    wrong = OutcomeTable(table.query_ids, table.queries, table.models, quality=np.zeros(table.quality.shape),
                         cost_usd=table.cost_usd)  # fmt: skip
    predictor.update(wrong)
    after = predictor.forecast(table.queries)
    assert predictor.arrays()["projection"] is networks
    assert (after.quality < before.quality).all()


def test_settings_make_an_equal_predictor_and_a_column_can_come_and_go():
    settings = {"width": 3, "buckets": 4, "steps": 20}
    assert TrainedPredictor(**settings).settings() == settings
    table = make_table()
    predictor = fitted(table, **settings)
    assert predictor.arrays()["embedding"].shape[-2:] == (3, 3)
    assert predictor.arrays()["centre"].shape == (4,)
    before = predictor.forecast(table.queries)
    predictor.add(*priced("new"))
    wider: Forecast = predictor.forecast(table.queries)
    np.testing.assert_allclose(wider.select(before.models).quality, before.quality)
    predictor.remove("new")
    np.testing.assert_array_equal(predictor.forecast(table.queries).quality, before.quality)


@pytest.mark.parametrize("settings", [{"width": 0}, {"buckets": 1}, {"steps": 0}])
def test_settings_that_cannot_be_are_refused(settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(ConfigError, match=f"trained: .*{name}={value}"):
        TrainedPredictor(**settings)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_outcomes_all_alike_are_forecast_as_they_are(value):
    _, encoder = points(seed=0, n=50)
    forecast = fitted(numbered(np.full((50, 2), value)), encoder, steps=60).forecast(["0003", "0004"])
    np.testing.assert_allclose(forecast.quality, value, atol=0.03)
    np.testing.assert_allclose(forecast.cost_usd, 1.0, atol=0.03)
