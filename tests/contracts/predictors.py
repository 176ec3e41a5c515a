"""What every predictor must do, whatever it learns."""

import dataclasses
import json
import pickle
import random
from functools import cache

import numpy as np
import pytest

from eccos_integrations import Forecast, Model, ModelPool, OutcomeTable
from tests.contracts.tables import ODD_TEXTS, embed, make_table, priced, with_gaps, without

NEW = ["sum of three numbers", "proof about primes, case 1", "", "something else entirely", "capital of a country"]
MEASURES = [field.name for field in dataclasses.fields(Forecast)[1:]]


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
    forecast.check(n)
    assert np.isfinite(forecast.quality_std).all()
    assert (forecast.quality_std >= 0).all()
    known = np.isfinite(forecast.output_tokens)
    for name in ("output_tokens_p10", "output_tokens_p90"):
        np.testing.assert_array_equal(np.isfinite(getattr(forecast, name)), known, err_msg=name)
    assert (forecast.output_tokens_p10[known] >= 0).all()
    assert (forecast.output_tokens_p10[known] <= forecast.output_tokens_p90[known]).all()


class PredictorContract:
    """`kind` is the class under test; every test runs with a fitted and with a given encoder."""

    kind = None

    @pytest.fixture(params=["lexical", embed], ids=["lexical", "function"])
    def encoder(self, request):
        return request.param

    @pytest.fixture(params=["fitted", "changed", "restored"])
    def predictor(self, encoder, request):
        """One that was fitted; one that was fitted, then changed in every way; a copy of that one. Read-only."""
        return getattr(self, request.param)(encoder)

    def fit(self, encoder, table, pool=None, seed=0):
        return self.kind(encoder).fit(table, pool or ModelPool.from_outcomes(table), seed=seed)

    @classmethod
    @cache
    def fitted(cls, encoder):
        """On a table with gaps."""
        table = make_table(observed=0.7)
        return cls.kind(encoder).fit(table, ModelPool.from_outcomes(table), seed=0)

    @classmethod
    @cache
    def changed(cls, encoder):
        """With feedback, two models more, one of them with outcomes, and one less."""
        table = make_table(60, observed=0.7)
        predictor = cls.kind(encoder).fit(table.take(range(40)), ModelPool.from_outcomes(table), seed=0)
        predictor.update(table.take(range(40, 60)))
        predictor.add(*priced("newcomer"))
        predictor.add(*priced("acquainted"), make_table(15, models=["acquainted", "large"], seed=4))
        predictor.remove("medium")
        predictor.update(make_table(10, models=["newcomer", "small"], seed=5, observed=0.5))
        return predictor

    @classmethod
    @cache
    def restored(cls, encoder):
        """From what the changed one's settings and arrays were written down as."""
        predictor = cls.changed(encoder)
        settings = json.loads(json.dumps(predictor.settings(), sort_keys=True))
        arrays = {name: np.array(array) for name, array in predictor.arrays().items()}
        pool = ModelPool([Model(**model.model_dump()) for model in reversed(list(predictor.pool))])
        return cls.kind.restore(settings, arrays, predictor.encoder, pool)

    def test_a_batch_is_forecast_as_its_queries_one_by_one(self, predictor):
        queries = NEW + make_table(60, seed=1).queries
        singles = [predictor.forecast([query]) for query in queries]
        one_by_one = Forecast.concatenate(singles, [np.array([i]) for i in range(len(queries))])
        assert_equal(predictor.forecast(queries), one_by_one, tolerance=1e-6)

    def test_the_order_of_queries_does_not_matter(self, predictor):
        order = np.random.default_rng(0).permutation(len(NEW))
        assert_equal(predictor.forecast([NEW[i] for i in order]), predictor.forecast(NEW).take(order))

    def test_equal_texts_in_a_batch_are_forecast_alike_to_the_last_bit(self, predictor):
        texts = [NEW[0], NEW[1]] * 20
        forecast = predictor.forecast(texts)
        assert_equal(forecast, forecast.take(np.arange(40) % 2), tolerance=0)

    def test_forecasts_are_sound_and_sorted_by_name(self, predictor):
        texts = [text for name, text in ODD_TEXTS.items() if name != "a megabyte"]
        assert_sound(predictor.forecast(NEW + texts), len(NEW + texts), predictor.pool.names)

    def test_no_queries_give_an_empty_forecast(self, predictor):
        assert_sound(predictor.forecast([]), 0, predictor.pool.names)

    def test_arrays_and_settings_restore_an_equal_predictor(self, predictor):
        pool = ModelPool(list(predictor.pool)[::-1])
        restored = self.kind.restore(
            json.loads(json.dumps(predictor.settings())), predictor.arrays(), predictor.encoder, pool
        )
        assert_equal(restored.forecast(NEW), predictor.forecast(NEW), tolerance=0)

    def test_a_pickled_copy_forecasts_alike(self, predictor):
        copied = pickle.loads(pickle.dumps(predictor))
        assert_equal(copied.forecast(NEW), predictor.forecast(NEW), tolerance=0)

    def test_it_shows_no_text(self, predictor):
        assert repr(predictor.forecast(NEW)) == f"Forecast(5 queries x {len(predictor.pool)} models)"
        assert "proof" not in repr(predictor)
        assert all(array.dtype.kind in "biuf" for array in predictor.arrays().values())

    def test_many_copies_of_one_text_in_the_history_are_forecast_alike_alone_and_in_a_batch(self, encoder):
        outcomes = make_table(600)
        same = OutcomeTable(
            outcomes.query_ids, ["proof about primes"] * 500 + outcomes.queries[500:], outcomes.models,
            quality=outcomes.quality, cost_usd=outcomes.cost_usd,
        )  # fmt: skip
        predictor = self.fit(encoder, same)
        batch = predictor.forecast(["proof about primes", *make_table(63).queries]).take([0])
        assert_equal(predictor.forecast(["proof about primes"]), batch, tolerance=1e-6)

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

    def test_learning_leaves_everyone_elses_random_numbers_alone(self, encoder):
        import torch

        def state():
            return str(np.random.get_state()), torch.random.get_rng_state().tolist(), random.getstate()  # noqa: NPY002

        before = state()
        predictor = self.fit(encoder, make_table(), seed=3)
        predictor.update(make_table(5, seed=1))
        predictor.forecast(NEW)
        assert state() == before

    def test_any_text_can_be_learnt_and_forecast(self, encoder):
        outcomes = make_table(len(ODD_TEXTS))
        table = OutcomeTable(outcomes.query_ids, list(ODD_TEXTS.values()), outcomes.models,
                             quality=outcomes.quality, cost_usd=outcomes.cost_usd)  # fmt: skip
        predictor = self.fit(encoder, table.take(range(5)))
        predictor.update(table)
        assert_sound(predictor.forecast(NEW + table.queries), len(NEW) + len(table), table.models)

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

    def test_a_model_that_was_never_observed_is_forecast_like_its_kin_at_its_own_price(self, encoder):
        table = make_table(60, models=("good", "poor", "unseen"))
        quality = np.column_stack([np.full(60, 0.9), np.full(60, 0.3), np.full(60, np.nan)])
        table = OutcomeTable(table.query_ids, table.queries, table.models, quality=quality,
                             output_tokens=table.output_tokens * np.where(np.isfinite(quality), 1, np.nan))  # fmt: skip
        for like, between in (("good", (0.6, 0.9)), ("poor", (0.3, 0.6))):
            usd = {"good": 10.0, "poor": 0.1, "unseen": {"good": 8.0, "poor": 0.12}[like]}
            pool = ModelPool([model for name in table.models for model in priced(name, usd=usd[name])])
            forecast = self.fit(encoder, table, pool).forecast(NEW)
            assert_sound(forecast, len(NEW), table.models)
            unseen = forecast.models.index("unseen")
            assert (between[0] < forecast.quality[:, unseen]).all(), like
            assert (forecast.quality[:, unseen] < between[1]).all(), like
            tokens = forecast.output_tokens
            assert (tokens.min(axis=1) * 0.8 <= tokens[:, unseen]).all()
            assert (tokens[:, unseen] <= tokens.max(axis=1) * 1.25).all()
            price = usd["unseen"] * (forecast.input_tokens + 4 * tokens)[:, unseen] / 1e6
            np.testing.assert_allclose(forecast.cost_usd[:, unseen], price)

    def test_a_query_that_is_hard_for_its_kin_is_hard_for_a_model_that_was_never_observed(self, encoder):
        table = make_table(80)
        proofs = np.array(["proof" in query for query in table.queries])
        quality = np.tile(np.where(proofs, 0.0, 1.0)[:, None], (1, 3))
        seen = OutcomeTable(table.query_ids, table.queries, table.models, quality=quality, cost_usd=table.cost_usd,
                            output_tokens=table.output_tokens)  # fmt: skip
        forecast = self.fit(encoder, seen, priced(*table.models, "unseen")).forecast(table.queries)
        gaps = forecast.quality[~proofs].mean(axis=0) - forecast.quality[proofs].mean(axis=0)
        unseen = forecast.models.index("unseen")
        observed = np.delete(gaps, unseen).mean()
        assert 0.7 * observed <= gaps[unseen] <= observed + 1e-9

    def test_a_new_model_with_prices_can_join_models_that_have_none(self, encoder):
        table = make_table()
        pool = ModelPool([*ModelPool.from_outcomes(without(table, "output_tokens")), *priced("new")])
        assert_sound(self.fit(encoder, table, pool).forecast(NEW), len(NEW), pool.names)

    def test_a_column_of_the_table_without_outcomes_is_a_new_model(self, encoder):
        table = make_table()
        pool = ModelPool.from_outcomes(table)
        without_column = self.fit(encoder, table.select(["medium", "small"]), pool).forecast(NEW)
        assert_equal(self.fit(encoder, with_gaps(table, "large", 0), pool).forecast(NEW), without_column, tolerance=0)

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
