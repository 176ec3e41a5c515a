"""What every predictor must do, whatever it learns."""

import json
import random
from functools import cache

import numpy as np
import pytest

from eccos_integrations import Forecast, ModelPool, OutcomeTable
from eccos_integrations.predictors.base import PRIOR_STRENGTH
from tests.contracts.processes import run_python
from tests.contracts.tables import ODD_TEXTS, embed, make_table, priced, without

NEW = ["sum of three numbers", "proof about primes, case 1", "", "something else entirely", "capital of a country"]
MEASURES = ("quality", "cost_usd", "input_tokens", "output_tokens", "latency_s")

RESTORE = """
import json, sys
import numpy as np
from eccos_integrations import Model, ModelPool
from eccos_integrations.encoders import LexicalEncoder
from eccos_integrations.predictors import PREDICTORS

folder = sys.argv[1]
saved = json.load(open(f"{folder}/saved.json"))
encoder = LexicalEncoder.restore(saved["encoder"], dict(np.load(f"{folder}/encoder.npz")))
pool = ModelPool([Model(**model) for model in saved["pool"]])
learnt = dict(np.load(f"{folder}/predictor.npz"))
predictor = PREDICTORS[saved["name"]].restore(saved["settings"], learnt, encoder, pool)
forecast = predictor.forecast(saved["queries"])
np.savez(f"{folder}/forecast.npz", quality=forecast.quality, cost_usd=forecast.cost_usd)
assert "torch" not in sys.modules, "torch is needed to learn, not to forecast"
"""


def assert_equal(one, other, tolerance=1e-9):
    assert one.models == other.models
    for name in MEASURES:
        np.testing.assert_allclose(
            getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance, err_msg=name
        )


def assert_sound(forecast, n, models):
    assert forecast.models == sorted(models)
    for name in MEASURES:
        assert getattr(forecast, name).shape == (n, len(models)), name
    assert np.isfinite(forecast.quality).all()
    assert ((forecast.quality >= 0) & (forecast.quality <= 1)).all()
    assert np.isfinite(forecast.cost_usd).all()
    assert (forecast.cost_usd >= 0).all()


class PredictorContract:
    """`kind` is the class under test; every test runs with a fitted and with a given encoder."""

    kind = None

    @pytest.fixture(params=["lexical", embed], ids=["lexical", "function"])
    def encoder(self, request):
        return request.param

    def fit(self, encoder, table, pool=None, seed=0):
        return self.kind(encoder).fit(table, pool or ModelPool.from_outcomes(table), seed=seed)

    @classmethod
    @cache
    def fitted(cls, encoder):
        """Fitted once on a table with gaps; read-only."""
        table = make_table(observed=0.7)
        return cls.kind(encoder).fit(table, ModelPool.from_outcomes(table), seed=0)

    def test_a_batch_is_forecast_as_its_queries_one_by_one(self, encoder):
        predictor = self.fitted(encoder)
        queries = NEW + make_table(60, seed=1).queries
        singles = [predictor.forecast([query]) for query in queries]
        one_by_one = Forecast.concatenate(singles, [np.array([i]) for i in range(len(queries))])
        assert_equal(predictor.forecast(queries), one_by_one, tolerance=1e-6)

    def test_many_copies_of_one_text_are_forecast_alike_alone_and_in_a_batch(self, encoder):
        outcomes = make_table(300)
        same = OutcomeTable(
            outcomes.query_ids, ["proof about primes"] * 200 + outcomes.queries[200:], outcomes.models,
            quality=outcomes.quality, cost_usd=outcomes.cost_usd,
        )  # fmt: skip
        predictor = self.fit(encoder, same)
        batch = predictor.forecast(["proof about primes"] * 64).quality
        np.testing.assert_allclose(
            batch, np.tile(predictor.forecast(["proof about primes"]).quality, (64, 1)), atol=1e-6
        )

    def test_the_order_of_queries_does_not_matter(self, encoder):
        predictor = self.fitted(encoder)
        order = np.random.default_rng(0).permutation(len(NEW))
        shuffled = predictor.forecast([NEW[i] for i in order])
        assert_equal(shuffled, Forecast(shuffled.models, **{
            name: getattr(predictor.forecast(NEW), name)[order] for name in MEASURES
        }))  # fmt: skip

    def test_the_order_of_rows_and_models_in_the_table_and_the_pool_does_not_matter(self, encoder):
        table = make_table(observed=0.7)
        turned = table.take(np.random.default_rng(1).permutation(len(table))).select(["small", "large", "medium"])
        pool = ModelPool(list(ModelPool.from_outcomes(table))[::-1])
        assert_equal(self.fit(encoder, turned, pool).forecast(NEW), self.fitted(encoder).forecast(NEW))

    def test_refitting_with_the_same_seed_changes_nothing(self, encoder):
        table = make_table(observed=0.7)
        pool = ModelPool.from_outcomes(table)
        again = self.kind(encoder).fit(make_table(30, seed=9), pool, seed=5).fit(table, pool, seed=0)
        assert_equal(again.forecast(NEW), self.fitted(encoder).forecast(NEW), tolerance=0)

    def test_fitting_leaves_everyone_elses_random_numbers_alone(self, encoder):
        import torch

        def state():
            return str(np.random.get_state()), torch.random.get_rng_state().tolist(), random.getstate()  # noqa: NPY002

        before = state()
        self.fit(encoder, make_table(), seed=3).forecast(NEW)
        assert state() == before

    def test_arrays_and_settings_restore_an_equal_predictor(self, encoder):
        predictor = self.fitted(encoder)
        settings = json.loads(json.dumps(predictor.settings()))
        pool = ModelPool(list(predictor.pool)[::-1])
        restored = self.kind.restore(settings, predictor.arrays(), predictor.encoder, pool)
        assert_equal(restored.forecast(NEW), predictor.forecast(NEW), tolerance=0)

    def test_another_process_restores_an_equal_predictor_without_torch(self, tmp_path):
        predictor = self.fitted("lexical")
        np.savez(tmp_path / "encoder.npz", allow_pickle=False, **predictor.encoder.arrays())
        np.savez(tmp_path / "predictor.npz", allow_pickle=False, **predictor.arrays())
        saved = {
            "name": predictor.name, "settings": predictor.settings(), "encoder": predictor.encoder.settings(),
            "pool": [model.model_dump() for model in predictor.pool], "queries": NEW,
        }  # fmt: skip
        (tmp_path / "saved.json").write_text(json.dumps(saved))
        run_python(RESTORE, tmp_path)
        elsewhere = np.load(tmp_path / "forecast.npz")
        np.testing.assert_allclose(elsewhere["quality"], predictor.forecast(NEW).quality, atol=1e-12)
        np.testing.assert_allclose(elsewhere["cost_usd"], predictor.forecast(NEW).cost_usd, rtol=1e-9)

    @pytest.mark.parametrize("name", ODD_TEXTS)
    def test_any_text_can_be_forecast(self, encoder, name):
        predictor = self.fitted(encoder)
        assert_sound(predictor.forecast([ODD_TEXTS[name]]), 1, predictor.pool.names)

    def test_any_text_can_be_learnt_from(self, encoder):
        outcomes = make_table(len(ODD_TEXTS))
        table = OutcomeTable(outcomes.query_ids, list(ODD_TEXTS.values()), outcomes.models,
                             quality=outcomes.quality, cost_usd=outcomes.cost_usd)  # fmt: skip
        assert_sound(self.fit(encoder, table).forecast(NEW), len(NEW), table.models)

    def test_no_queries_give_an_empty_forecast(self, encoder):
        predictor = self.fitted(encoder)
        assert_sound(predictor.forecast([]), 0, predictor.pool.names)

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_a_tiny_table_is_enough(self, encoder, n):
        table = make_table(n)
        assert_sound(self.fit(encoder, table).forecast(NEW), len(NEW), table.models)

    def test_a_table_of_one_text_is_enough(self, encoder):
        table = make_table(20)
        table = OutcomeTable(
            table.query_ids, ["same"] * 20, table.models, quality=table.quality, cost_usd=table.cost_usd
        )
        assert_sound(self.fit(encoder, table).forecast(NEW), len(NEW), table.models)

    def test_outcomes_that_are_all_alike_are_no_special_case(self, encoder):
        table = make_table(20)
        for value in (0.0, 1.0):
            alike = np.full(table.quality.shape, value)
            same = OutcomeTable(table.query_ids, table.queries, table.models, quality=alike, cost_usd=alike)
            forecast = self.fit(encoder, same).forecast(NEW)
            assert_sound(forecast, len(NEW), table.models)
            np.testing.assert_allclose(forecast.quality, value, atol=0.05)
            np.testing.assert_allclose(forecast.cost_usd, value, atol=0.05)

    def test_a_model_that_was_never_observed_gets_the_prior_and_its_own_prices(self, encoder):
        table = make_table()
        forecast = self.fit(encoder, table, priced(*table.models, "new")).forecast(NEW)
        assert_sound(forecast, len(NEW), [*table.models, "new"])
        new = forecast.models.index("new")
        np.testing.assert_allclose(forecast.quality[:, new], table.quality.mean())
        np.testing.assert_allclose(forecast.output_tokens[:, new], table.output_tokens.mean())
        np.testing.assert_allclose(
            forecast.cost_usd[:, new], (2 * forecast.input_tokens[:, new] + 8 * table.output_tokens.mean()) / 1e6
        )

    def test_a_new_model_with_prices_can_join_models_that_have_none(self, encoder):
        table = make_table()
        pool = ModelPool([*ModelPool.from_outcomes(without(table, "output_tokens")), *priced("new")])
        assert_sound(self.fit(encoder, table, pool).forecast(NEW), len(NEW), pool.names)

    def test_a_column_of_the_table_without_outcomes_is_a_new_model(self, encoder):
        table = make_table()
        quality = table.quality.copy()
        quality[:, 0] = np.nan
        unseen = OutcomeTable(table.query_ids, table.queries, table.models, quality=quality, cost_usd=table.cost_usd)
        forecast = self.fit(encoder, unseen).forecast(NEW)
        assert_sound(forecast, len(NEW), table.models)
        np.testing.assert_allclose(forecast.quality[:, 0], table.quality[:, 1:].mean())

    def test_costs_without_tokens_are_forecast_from_costs(self, encoder):
        table = without(make_table(observed=0.7), "input_tokens", "output_tokens")
        forecast = self.fit(encoder, table).forecast(NEW)
        assert_sound(forecast, len(NEW), table.models)
        assert np.isnan(forecast.output_tokens).all()
        dear, cheap = (forecast.cost_usd[:, forecast.models.index(name)].mean() for name in ("large", "small"))
        assert dear > 3 * cheap

    def test_tokens_without_costs_are_priced_by_the_pool(self, encoder):
        table = without(make_table(observed=0.7), "cost_usd")
        forecast = self.fit(encoder, table, priced(*table.models)).forecast(NEW)
        assert_sound(forecast, len(NEW), table.models)
        priced_by_hand = (2 * forecast.input_tokens + 8 * forecast.output_tokens) / 1e6
        np.testing.assert_allclose(forecast.cost_usd, priced_by_hand)

    def test_the_forecast_total_cost_is_near_the_observed_one(self, encoder):
        table = make_table(200)
        forecast = self.fit(encoder, table).forecast(table.queries).select(table.models)
        np.testing.assert_allclose(forecast.cost_usd.mean(axis=0), table.cost_usd.mean(axis=0), rtol=0.1)

    def test_latency_is_the_observed_mean_or_follows_from_the_pool(self, encoder):
        table = make_table()
        latency = np.full(table.quality.shape, np.nan)
        latency[:, 0] = 3.0
        known = OutcomeTable(table.query_ids, table.queries, table.models, quality=table.quality, latency_s=latency,
                             output_tokens=table.output_tokens)  # fmt: skip
        speedy = [model.model_copy(update={"base_latency_s": 1.0, "output_tokens_per_s": 100.0})
                  for model in priced("large", "medium")]  # fmt: skip
        forecast = self.fit(encoder, known, ModelPool([*speedy, *priced("small")])).forecast(NEW)
        np.testing.assert_allclose(forecast.latency_s[:, 0], 3.0)
        np.testing.assert_allclose(forecast.latency_s[:, 1], 1 + forecast.output_tokens[:, 1] / 100)
        assert np.isnan(forecast.latency_s[:, 2]).all()

    def test_the_more_a_model_was_observed_the_more_its_own_mean_counts(self, encoder):
        table = make_table(60)
        means = []
        for outcomes in (1, 5, 60):
            quality = np.column_stack([np.where(np.arange(60) < outcomes, 1.0, np.nan), np.full(60, 0.2)])
            seen = OutcomeTable(table.query_ids, table.queries, ["good", "poor"], quality=quality,
                                cost_usd=table.cost_usd[:, :2])  # fmt: skip
            means.append(self.fit(encoder, seen).forecast(NEW).quality[:, 0].mean())
        assert 0.2 < means[0] < means[1] < means[2] <= 1
        assert means[0] < (1 + PRIOR_STRENGTH * 0.6) / (1 + PRIOR_STRENGTH) + 0.05

    def test_unfitted_gives_a_fresh_one_of_the_same_settings(self, encoder):
        predictor = self.fitted(encoder)
        before = predictor.forecast(NEW)
        fresh = predictor.unfitted()
        assert (type(fresh), fresh.settings(), fresh.arrays()) == (self.kind, predictor.settings(), {})
        other = make_table(30, seed=5)
        pool = ModelPool.from_outcomes(other)
        assert_equal(
            fresh.fit(other, pool, seed=0).forecast(NEW), self.kind(encoder).fit(other, pool, seed=0).forecast(NEW)
        )
        assert_equal(predictor.forecast(NEW), before, tolerance=0)
