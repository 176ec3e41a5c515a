"""The contract over every kind of predictor, and what each must do when it learns more."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier, Event

import numpy as np
import pytest

from eccos_integrations import ConfigError, EccosError, Forecast, Model, ModelPool, OutcomeTable
from eccos_integrations.predictors import PREDICTORS
from tests.contracts.predictors import MEASURES, NEW, PredictorContract, assert_equal, assert_sound
from tests.contracts.processes import run_python
from tests.contracts.tables import embed, make_table, numbered, points, priced, twice, with_gaps

KINDS = [kind for name, kind in PREDICTORS.items() if name != "trained"]

RESTORE = """
import json, sys
import numpy as np
from eccos_integrations import Model, ModelPool
from eccos_integrations.encoders import LexicalEncoder
from eccos_integrations.predictors import PREDICTORS

folder = sys.argv[1]
for saved in json.load(open(f"{folder}/saved.json")):
    name = saved["name"]
    encoder = LexicalEncoder.restore(saved["encoder"], dict(np.load(f"{folder}/{name}-encoder.npz")))
    pool = ModelPool([Model(**model) for model in saved["pool"]])
    predictor = PREDICTORS[name].restore(saved["settings"], dict(np.load(f"{folder}/{name}.npz")), encoder, pool)
    forecast = predictor.forecast(saved["queries"])
    np.savez(f"{folder}/{name}-forecast.npz", **{measure: getattr(forecast, measure) for measure in saved["measures"]})
assert "torch" not in sys.modules, "torch is needed to learn, not to forecast"
"""


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    return request.param


@cache
def fitted(kind):
    """Read-only: `copied` gives one to change."""
    table = make_table(60, observed=0.8)
    return kind(embed).fit(table, ModelPool.from_outcomes(table))


def copied(predictor):
    arrays = {name: array.copy() for name, array in predictor.arrays().items()}
    return type(predictor).restore(predictor.settings(), arrays, predictor.encoder, predictor.pool)


def fit(kind, table, pool=None, encoder=embed):
    return kind(encoder).fit(table, pool or ModelPool.from_outcomes(table))


for _kind in KINDS:
    _name = f"Test{_kind.name.title()}"
    globals()[_name] = type(_name, (PredictorContract,), {"kind": _kind, "__module__": __name__})


def test_another_process_restores_equal_predictors_without_torch(tmp_path):
    saved = []
    expected = {}
    for kind in KINDS:
        contract = globals()[f"Test{kind.name.title()}"]
        predictor = contract.changed("lexical")
        np.savez(tmp_path / f"{kind.name}-encoder.npz", allow_pickle=False, **predictor.encoder.arrays())
        np.savez(tmp_path / f"{kind.name}.npz", allow_pickle=False, **predictor.arrays())
        saved.append({
            "name": kind.name, "settings": predictor.settings(), "encoder": predictor.encoder.settings(),
            "pool": [model.model_dump() for model in predictor.pool], "queries": NEW, "measures": MEASURES,
        })  # fmt: skip
        expected[kind.name] = predictor.forecast(NEW)
    (tmp_path / "saved.json").write_text(json.dumps(saved))
    run_python(RESTORE, tmp_path)
    for name, forecast in expected.items():
        assert_equal(Forecast(forecast.models, **np.load(tmp_path / f"{name}-forecast.npz")), forecast)


def test_outcomes_learnt_by_an_update_count_like_outcomes_learnt_by_a_fit(kind):
    table = make_table(80)
    updated = fit(kind, table)
    updated.update(twice(table).take(range(80, 160)))
    refitted = fit(kind, twice(table))
    error = np.abs(updated.forecast(table.queries).quality - refitted.forecast(table.queries).quality)
    if kind.name in {"prior", "ridge", "retrieval"}:
        assert error.max() < 1e-6
    assert error.mean() < 0.1  # the others find groups anew, and finer ones


def test_an_update_moves_forecasts_to_what_was_seen(kind):
    predictor = copied(fitted(kind))
    before = predictor.forecast(NEW)
    table = make_table(60, models=["large"], seed=7)
    worse = OutcomeTable(table.query_ids, table.queries, ["large"], quality=np.zeros((60, 1)),
                         output_tokens=3 * table.output_tokens, input_tokens=table.input_tokens)  # fmt: skip
    predictor.update(worse)
    after = predictor.forecast(NEW)
    assert (after.quality[:, 0] < before.quality[:, 0] - 0.2).all()
    assert (after.output_tokens[:, 0] > 1.3 * before.output_tokens[:, 0]).all()
    assert (after.quality_std < before.quality_std + 1e-9).all()


def test_updates_in_one_batch_equal_updates_one_by_one(kind):
    more = make_table(30, seed=8, observed=0.6)
    at_once, one_by_one = copied(fitted(kind)), copied(fitted(kind))
    at_once.update(more)
    for row in np.flatnonzero(np.isfinite(more.quality).any(axis=1)):
        one_by_one.update(more.take([row]))
    assert_equal(at_once.forecast(NEW), one_by_one.forecast(NEW), tolerance=1e-6)


def test_an_update_of_what_was_not_observed_changes_nothing(kind):
    table = make_table(30, models=["large", "stranger"], seed=8)
    predictor = copied(fitted(kind))
    before = predictor.forecast(NEW + table.queries)
    predictor.update(with_gaps(table, "large", 0))
    predictor.update(table.select(["stranger"]))
    assert_equal(predictor.forecast(NEW + table.queries), before, tolerance=0)


def test_an_update_leaves_out_models_that_are_not_in_the_pool(kind):
    table = with_gaps(make_table(30, models=["large", "stranger"], seed=8), "large", 20)
    with_stranger, without_stranger = copied(fitted(kind)), copied(fitted(kind))
    with_stranger.update(table)
    without_stranger.update(table.take(range(20)).select(["large"]))
    assert_equal(with_stranger.forecast(NEW), without_stranger.forecast(NEW))


@pytest.mark.parametrize("change", ["update", "add", "remove"])
def test_a_change_before_fitting_is_refused_in_words(kind, change):
    argument = {"update": make_table(), "add": Model(name="new"), "remove": "large"}[change]
    with pytest.raises(EccosError, match="fit"):
        getattr(kind(), change)(argument)


def test_forecasting_before_fitting_is_refused_in_words(kind):
    with pytest.raises(EccosError, match="fit"):
        kind().forecast(["?"])


@pytest.mark.parametrize("change", ["update", "add"])
def test_a_change_that_fails_changes_nothing(kind, change):
    width = [16]
    predictor = kind(lambda texts: np.ones((len(texts), width[0])))
    table = make_table(50)
    predictor.fit(table.take(range(40)), ModelPool.from_outcomes(table))
    before = predictor.forecast(NEW)
    width[0] = 5
    unseen = table.take(range(40, 50)).select(["small"])
    renamed = OutcomeTable(unseen.query_ids, unseen.queries, ["new"], quality=unseen.quality)
    wrong = {"update": lambda: predictor.update(unseen), "add": lambda: predictor.add(*priced("new"), renamed)}
    with pytest.raises(ConfigError, match=r"encoder.*dimensions"):
        wrong[change]()
    assert_equal(predictor.forecast(NEW), before, tolerance=0)


def test_forecasts_beside_updates_are_each_of_one_state(kind):
    batches = [make_table(25, seed=seed) for seed in range(6)]
    replayed = copied(fitted(kind))
    states = [replayed.forecast(NEW).quality]
    for batch in batches:
        replayed.update(batch)
        states.append(replayed.forecast(NEW).quality)
    predictor = copied(fitted(kind))
    start, done = Barrier(4), Event()

    def forecast(_):
        start.wait()
        found = [predictor.forecast(NEW).quality]
        while not done.is_set():
            found.append(predictor.forecast(NEW).quality)
        return found

    with ThreadPoolExecutor(3) as threads:
        running = threads.map(forecast, range(3))
        start.wait()
        for batch in batches:
            predictor.update(batch)
        done.set()
    for quality in (quality for part in running for quality in part):
        assert min(np.abs(quality - state).max() for state in states) < 1e-9
    np.testing.assert_allclose(predictor.forecast(NEW).quality, states[-1], atol=1e-12)


def test_updates_beside_updates_are_all_learnt(kind):
    predictor = copied(fitted(kind))
    batches = [make_table(4, seed=seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(predictor.update, batches))
    one_by_one = copied(fitted(kind))
    for batch in batches:
        one_by_one.update(batch)
    assert_equal(predictor.forecast(NEW), one_by_one.forecast(NEW), tolerance=1e-6)


def test_two_predictors_restored_from_the_same_arrays_learn_apart(kind):
    one = copied(fitted(kind))
    one.update(make_table(5, seed=1))  # from here on there may be room to grow that both could write to
    other = kind.restore(one.settings(), one.arrays(), one.encoder, one.pool)
    alone = copied(one)
    one.update(make_table(5, seed=2))
    alone.update(make_table(5, seed=2))
    other.update(make_table(5, seed=3))
    assert_equal(one.forecast(NEW), alone.forecast(NEW))


@pytest.mark.parametrize("name", ["aaa", "large-2", "zzz"])
@pytest.mark.parametrize("outcomes", [0, 40])
def test_one_model_more_changes_no_other_ones_forecast(kind, name, outcomes):
    models = [f"model {i}" for i in range(11)]
    table = make_table(300, models=models, observed=0.7)
    predictor = copied(many_models(kind))
    texts = NEW + table.queries[:20]
    before = predictor.forecast(texts)
    known = make_table(outcomes, models=[name, "model 3"], seed=3) if outcomes else None
    predictor.add(*priced(name), known)
    assert_sound(predictor.forecast(texts), len(texts), [*models, name])
    assert_equal(predictor.forecast(texts).select(before.models), before, tolerance=1e-12)
    predictor.remove(name)
    assert_equal(predictor.forecast(texts), before, tolerance=1e-12)


@cache
def many_models(kind):
    table = make_table(300, models=[f"model {i}" for i in range(11)], observed=0.7)
    return fit(kind, table)


def test_an_added_model_with_outcomes_is_forecast_as_if_it_had_been_there(kind):
    table = make_table(200)
    pool = ModelPool.from_outcomes(table)
    there = fit(kind, table, pool).forecast(NEW)
    added = fit(kind, table.select(["large", "medium"]), ModelPool(list(pool)[:2]))
    added.add(pool["small"], table.select(["small"]))
    forecast = added.forecast(NEW)
    assert forecast.models == there.models
    np.testing.assert_allclose(forecast.quality, there.quality, atol=0.1)
    np.testing.assert_allclose(forecast.cost_usd, there.cost_usd, rtol=0.15)


def test_an_added_model_without_outcomes_is_forecast_like_its_kin_and_least_surely(kind):
    predictor = copied(fitted(kind))
    predictor.add(*priced("new"), with_gaps(make_table(10, models=["large", "new"]), "new", 0))
    forecast = predictor.forecast(NEW)
    others, new = forecast.select(["large", "medium", "small"]), forecast.select(["new"])
    assert (others.quality.min(axis=1) < new.quality[:, 0]).all()
    assert (new.quality[:, 0] < others.quality.max(axis=1)).all()
    assert (new.quality_std > others.quality_std).all()
    np.testing.assert_allclose(new.cost_usd, (2 * new.input_tokens + 8 * new.output_tokens) / 1e6)


def test_models_that_cannot_be_added_or_removed_are_refused_in_words(kind):
    predictor = copied(fitted(kind))
    for match, wrong in {
        "'large'": lambda: predictor.add(*priced("large")),
        "'new'": lambda: predictor.add(Model(name="new")),
        "'unheard'": lambda: predictor.remove("unheard"),
    }.items():
        with pytest.raises(ConfigError, match=match):
            wrong()
    predictor.remove("large")
    predictor.remove("small")
    with pytest.raises(ConfigError, match="'medium'"):
        predictor.remove("medium")
    assert_sound(predictor.forecast(NEW), len(NEW), ["medium"])


def test_held_out_tokens_lie_between_p10_and_p90_four_times_of_five(kind):
    rng = np.random.default_rng(0)
    n, m = 900, 4
    _, encoder = points(seed=1, n=n)
    tokens = 300 * np.exp(rng.normal(size=(n, m)) * [0.2, 0.5, 0.8, 1.1])
    whole = numbered(rng.random((n, m)))
    table = OutcomeTable(whole.query_ids, whole.queries, whole.models, quality=whole.quality, output_tokens=tokens)
    forecast = fit(kind, table.take(range(600)), priced(*table.models), encoder).forecast(table.queries[600:])
    within = (forecast.output_tokens_p10 <= tokens[600:]) & (tokens[600:] <= forecast.output_tokens_p90)
    np.testing.assert_allclose(within.mean(axis=0), 0.8, atol=0.08)


def test_an_encoder_that_changes_its_mind_about_dimensions_is_refused_in_words(kind):
    table = make_table()
    widths = iter(range(4, 100))
    predictor = kind(lambda texts: np.ones((len(texts), next(widths))))
    predictor.fit(table, ModelPool.from_outcomes(table))
    with pytest.raises(ConfigError, match=r"encoder.*dimensions"):
        predictor.forecast(["a text it has not seen"])
