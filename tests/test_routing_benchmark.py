"""The routing benchmark, on a slice of the bundled sample: its figures are what they say."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import routing
from benchmarks.routing_parts import guarantee
from benchmarks.routing_parts.baselines import (
    Clusters,
    LogCost,
    Logistic,
    LogisticHeads,
    LogisticMeanCost,
    Neighbours,
    TaskMeans,
)
from benchmarks.routing_parts.measures import difference, latency, log_loss, measure, summary
from benchmarks.routing_parts.scale import synthetic
from benchmarks.routing_parts.ways import BestSingle, Priced, Threshold, WinRate, policy_at, ways
from eccos_integrations import ModelPool, OutcomeTable, Policy, load_sample
from eccos_integrations.encoders import LexicalEncoder
from eccos_integrations.errors import ConfigError
from eccos_integrations.evaluation.curve import TARGETS
from eccos_integrations.guarantee import Evidence
from eccos_integrations.history import best_single
from eccos_integrations.learnt import Learnt
from eccos_integrations.predictors import PREDICTORS

ROOT = Path(__file__).parents[1]
BASELINES = [Neighbours, Logistic, LogisticMeanCost, Clusters]


@pytest.fixture(scope="module")
def split():
    table = load_sample().take(np.arange(0, 1000, 4))
    return table.select(table.models[:5]).split(0.7, seed=0)


@pytest.fixture(scope="module")
def neighbours(split):
    encoder = LexicalEncoder(16)
    way = Priced("k-NN 16", Neighbours(encoder), encoder, "lexical", baseline=True)
    way.fit(split[0], 0)
    return way


@pytest.fixture(scope="module")
def measured(split):
    encoder = LexicalEncoder(16)
    return measure(Priced("k-NN 16", Neighbours(encoder), encoder, "lexical"), *split, 0, timings=True)


@pytest.mark.parametrize("floor", TARGETS)
def test_a_batch_is_sent_where_the_router_sends_its_queries_one_by_one(split, neighbours, floor):
    test = split[1]
    one_by_one = [neighbours.router.route(query, policy_at(floor)).model for query in test.queries]
    assert [test.models[column] for column in neighbours.choose(test.queries, floor)] == one_by_one


def test_every_predictor_and_auto_are_measured_over_every_encoder(split):
    found = [(way.name, way.encoder) for way in ways(split[0], {"a": LexicalEncoder(), "b": LexicalEncoder()})]
    assert {(name, encoder) for name in (*PREDICTORS, "auto") for encoder in "ab"} <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("way", [BestSingle("best single"), WinRate(LexicalEncoder(16), "lexical"),
                                 Threshold(LexicalEncoder(16), "lexical")])  # fmt: skip
def test_the_rules_without_a_price_give_a_column_per_query_and_stay_in_bounds(split, way):
    figures = measure(way, *split, 0, timings=False)
    assert 0 < figures["M"] <= 1
    assert [floor["floor"] for floor in figures["floors"]] == list(TARGETS)
    assert set(way.choose(split[1].queries, 0.97)) <= set(range(5))


def test_the_best_single_model_neither_saves_nor_misses_anything(split):
    figures = measure(BestSingle("best single"), *split, 0, timings=False)
    assert figures["M"] == 1
    assert all((floor["quality_share"], floor["cost_share"], floor["missed"]) == (1, 1, False)
               for floor in figures["floors"])  # fmt: skip


def test_the_win_rate_rule_asks_only_the_best_and_the_cheapest_and_at_the_full_floor_kept_it_on_the_past(split):
    train, test = split
    way = WinRate(LexicalEncoder(16), "lexical")
    way.fit(train, 0)
    for assignment in way.settings(test.queries):
        assert set(assignment) <= {way.strong, way.weak}
    first, *_, last = way.settings(test.queries)
    assert set(first) == {train.models.index(best_single(train))}
    assert set(last) == {int(train.cost_usd.mean(axis=0).argmin())}
    assert max(way.past.quality) >= way.past_quality


def test_operating_figures_are_looked_up_in_the_outcomes(split, neighbours, measured):
    train, test = split
    best = test.models.index(best_single(train))
    rows = np.arange(len(test))
    forecast = neighbours.forecast(test.queries)
    for figures in measured["floors"]:
        chosen = neighbours.choose(test.queries, figures["floor"])
        quality, cost = test.quality[rows, chosen].mean(), test.cost_usd[rows, chosen].sum()
        assert figures["quality_share"] == pytest.approx(quality / test.quality[:, best].mean())
        assert figures["cost_share"] == pytest.approx(cost / test.cost_usd[:, best].sum())
        assert figures["missed"] == (figures["quality_share"] < figures["floor"] - 1e-9)
        assert figures["calibration"] == pytest.approx(forecast.quality[rows, chosen].mean() - quality)
        assert figures["cost_bias"] == pytest.approx(forecast.cost_usd[rows, chosen].sum() / cost - 1)


def test_log_loss_of_a_coin_is_that_of_a_coin(split, neighbours):
    test = split[1]
    forecast = neighbours.forecast(test.queries)
    coin = type(forecast)(**{**vars(forecast), "quality": np.full(forecast.quality.shape, 0.5)})
    assert log_loss(coin, test) == pytest.approx(np.log(2))


def test_latency_is_of_texts_no_cache_has_seen():
    asked = []
    figures = latency(asked.append, ["one", "two"], decisions=20)
    assert len(set(asked)) == len(asked) == 30
    assert 0 <= figures["p50_ms"] <= figures["p99_ms"]


def test_a_summary_averages_over_seeds_and_floors_signed_and_absolute(neighbours, measured):
    other = copy.deepcopy(measured)
    other["M"] = measured["M"] + 0.1
    for floor in other["floors"]:
        floor["cost_bias"] = -floor["cost_bias"]
    row = summary(neighbours, [measured, other])
    assert row["M"] == pytest.approx(measured["M"] + 0.05)
    assert row["M_error"] == pytest.approx(0.05)
    assert row["cost_bias"] == pytest.approx(0)
    assert row["cost_bias_abs"] == pytest.approx(np.mean([abs(floor["cost_bias"]) for floor in measured["floors"]]))


def test_differences_are_paired_over_seeds():
    ours = {"way": "auto", "encoder": "lexical", "M": 0.4, "M_by_seed": [0.1, 0.7]}
    other = {"way": "k-NN 16", "encoder": "lexical", "M": 0.5, "M_by_seed": [0.2, 0.8]}
    found = difference(ours, other)
    assert found["difference"] == pytest.approx(-0.1)
    assert found["error"] == pytest.approx(0)  # both seeds differ by the same
    assert found["relative"] == pytest.approx(-0.2)
    assert found["seeds_better"] == 2


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_copied_baseline_has_learnt_nothing(split, baseline):
    fitted = baseline(LexicalEncoder(16)).fit(split[0], ModelPool.from_outcomes(split[0]))
    assert fitted.forecast(split[1].queries).check(len(split[1])).models == split[0].models
    assert vars(copy.deepcopy(fitted)).keys() == {"encoder"}


def test_neighbours_are_plain_means_of_the_nearest_rows(split):
    train, test = split
    encoder = LexicalEncoder(16)
    fitted = Neighbours(encoder).fit(train, ModelPool.from_outcomes(train))
    vectors = fitted.encoder.encode([*train.queries, test.queries[0]])
    nearest = np.argsort(-vectors[:-1] @ vectors[-1])[:16]
    forecast = fitted.forecast(test.queries[:1])
    assert forecast.quality[0] == pytest.approx(train.quality[nearest].mean(axis=0))
    assert forecast.cost_usd[0] == pytest.approx(train.cost_usd[nearest].mean(axis=0))


def test_task_means_are_told_the_task_and_fall_back_to_all_tasks(split):
    train, test = split
    tasks = np.array(train.tasks)
    told = TaskMeans(dict(zip(test.queries, test.tasks, strict=True))).fit(train, ModelPool.from_outcomes(train))
    forecast = told.forecast([test.queries[0], "a text of no task"])
    assert forecast.quality[0] == pytest.approx(train.quality[tasks == test.tasks[0]].mean(axis=0))
    assert forecast.cost_usd[1] == pytest.approx(train.cost_usd.mean(axis=0))


def test_logistic_heads_find_a_separable_rule_and_take_scores_between():
    vectors = np.random.default_rng(0).normal(size=(400, 3))
    outcomes = np.column_stack([vectors[:, 0] > 0, np.ones(400), np.full(400, 0.3)]).astype(float)
    chance = LogisticHeads(vectors, outcomes)(vectors)
    assert ((chance[:, 0] > 0.5) == outcomes[:, 0]).mean() > 0.97
    assert (chance[:, 1] > 0.99).all()
    assert chance[:, 2].mean() == pytest.approx(0.3, abs=0.01)


def test_the_cost_forecast_follows_the_text_and_is_right_in_sum():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4000, 3))
    cost = np.exp(vectors @ [[0.5], [-0.2], [0.0]] - 7 + rng.normal(0, 0.8, (4000, 1)))
    forecast = LogCost(vectors[:2000], cost[:2000])(vectors[2000:])
    assert forecast.sum() / cost[2000:].sum() == pytest.approx(1, abs=0.1)
    assert np.corrcoef(np.log(forecast[:, 0]), vectors[2000:] @ [0.5, -0.2, 0.0])[0, 1] > 0.99


def test_the_synthetic_table_is_distinct_texts_with_something_to_learn():
    table = synthetic(300, 6)
    assert len(set(table.queries)) == 300
    assert np.array_equal(table.quality, synthetic(300, 6).quality)
    assert table.quality.mean(axis=0)[-1] > table.quality.mean(axis=0)[0]
    assert (np.diff(table.cost_usd.mean(axis=0)) > 0).mean() > 0.5


def certifiable(cheap_is_right, rows=1000):
    """A cheap model that is right on a share of the rows and a best one always right; forecast alike on every row."""
    right = (np.arange(rows) < cheap_is_right * rows).astype(float)
    outcome = np.column_stack([right, np.ones(rows)])
    cost = np.tile([0.1, 1.0], (rows, 1))
    return Evidence(np.tile([0.96, 1.0], (rows, 1)), cost, outcome, cost)


@pytest.fixture
def learnt():
    table = OutcomeTable(["a"], ["a"], ["cheap", "good"], quality=[[0, 1]], cost_usd=[[0.1, 1.0]])
    return Learnt(ModelPool.from_outcomes(table), Policy(), "good", BestSingle("unused"), certifiable(0.96))


@pytest.mark.parametrize("policy", guarantee.POLICIES[:3])
def test_a_certificate_is_violated_where_the_unseen_fall_below_the_floor_and_only_there(learnt, policy):
    calibration = certifiable(0.96)
    assert guarantee.kept(learnt, policy, calibration, certifiable(0.90)) == {
        "certified": True, "below": False, "cost_share": pytest.approx(0.1)}  # fmt: skip
    assert guarantee.kept(learnt, policy, calibration, certifiable(0.89))["below"] is True


def test_what_is_not_certified_costs_what_the_best_does_and_violates_nothing(learnt):
    found = guarantee.kept(learnt, guarantee.POLICIES[0], certifiable(0.80, rows=5), certifiable(0.50))
    assert found == {"certified": False, "below": False, "cost_share": 1.0}


def test_every_floor_and_bound_is_counted_over_all_draws_of_all_fits(split, monkeypatch):
    monkeypatch.setattr(guarantee, "DRAWS", 2)
    rows = list(guarantee.certificates("sample", split[0], [0, 1]))
    assert [(row["floor"], row["bound"]) for row in rows] == [
        (floor, bound) for floor in (0.90, 0.95, 0.98) for bound in ("wsr", "clt", "crossfit")
    ]
    for row in rows:
        assert row["splits"] == 4
        for what in ("certified", "violated", "missed"):
            assert row[what] in (0, 0.25, 0.5, 0.75, 1)
            assert row[f"{what}_error"] == pytest.approx((row[what] * (1 - row[what]) / 4) ** 0.5)
        assert row["violated"] <= row["certified"]
        assert (row["cost_share"] < 1) == (row["certified"] > 0)


def test_promises_name_the_worst_and_certificates_are_only_owed_at_the_lowest_floor():
    row = {"table": "zeroeval", "violated": 0.01, "missed": 0.0, "certified": 0.9, "cost_share": 0.5}
    rows = [row | {"floor": floor, "bound": "wsr"} for floor in (0.90, 0.95, 0.98)]
    rows[2] |= {"violated": 0.06, "certified": 0.1}
    assert list(guarantee.promises(rows)) == [
        ("zeroeval", "guarantee violated, most by wsr at 0.98", 0.06, pytest.approx(0.05)),
        ("zeroeval", "guarantee missed, most by wsr at 0.9", 0.0, 0.10),
        ("zeroeval", "guarantee not certified, most by wsr at 0.9", pytest.approx(0.1), 0.20),
        ("zeroeval", "certified cost at 0.95 by wsr", 0.5, 0.60),
    ]
    assert list(guarantee.promises([])) == []


def test_the_guarantee_is_skipped_with_a_word_where_its_tables_are_absent(monkeypatch, tmp_path):
    for name, given in {"DATA_DIR": tmp_path, "BENCH_TABLES": "guarantee", "BENCH_ENCODERS": "lexical"}.items():
        monkeypatch.setenv(f"ECCOS_{name}", str(given))
    found = routing.results()
    assert found["skipped"] == dict.fromkeys(routing.CERTIFIED, "not in ECCOS_DATA_DIR")
    assert found["guarantee"] == found["bars"] == list(routing.tables(found)) == []


def test_a_bar_is_held_up_to_its_figure():
    assert routing.bar("t", "x", 0.4, 0.4)["holds"] is True
    assert routing.bar("t", "x", 0.41, 0.4)["holds"] is False


def test_an_unknown_way_is_refused_by_name(split, monkeypatch):
    monkeypatch.setenv("ECCOS_BENCH_WAYS", "oracle")
    with pytest.raises(ConfigError, match="oracle"):
        routing.on_table("sample", split[0], {"lexical": LexicalEncoder(16)}, [0])


def test_rows_of_contaminated_queries_are_left_out(split, tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    split[0].write(tmp_path / "small.parquet")
    rows = pq.read_table(tmp_path / "small.parquet")
    spoilt = split[0].query_ids[0]
    parts = ["contaminated" if query_id == spoilt else "eval" for query_id in rows["query_id"].to_pylist()]
    pq.write_table(rows.append_column("split", pa.array(parts)), tmp_path / "small.parquet")
    monkeypatch.setenv("ECCOS_DATA_DIR", str(tmp_path))
    assert routing.outcomes("small").query_ids == split[0].query_ids[1:]
    assert routing.outcomes("absent") is None


def test_the_command_prints_one_json_object_and_nothing_else():
    """Two ways on the whole sample, one seed."""
    chosen = {"SEEDS": "0", "TABLES": "sample,absent", "ENCODERS": "lexical", "WAYS": "best single,AIOS threshold"}
    environment = os.environ | {f"ECCOS_BENCH_{name}": value for name, value in chosen.items()}
    command = [sys.executable, "-m", "eccos_integrations.cli", "bench", "routing", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert [row["way"] for row in found["tables"]["sample"]["ways"]] == ["best single", "AIOS threshold"]
    assert found["skipped"] == {"absent": "not in ECCOS_DATA_DIR"}
    assert found["seeds"] == [0]


def test_the_tables_for_people_fit_their_width(split, monkeypatch):
    from rich.console import Console

    monkeypatch.setenv("ECCOS_BENCH_WAYS", "best single,k-NN 16")
    table = routing.on_table("paretobandit", split[0], {"lexical": LexicalEncoder(16)}, [0, 1])
    auto = table["ways"][-1] | {"way": "auto", "baseline": False}
    table["differences"] = [difference(auto, row) for row in table["ways"]]
    table["ways"].append(auto)
    certified = {"table": "paretobandit", "floor": 0.9, "bound": "crossfit", "splits": 200, "cost_share": 1.0}
    certified |= {
        name: 1.0 for what in ("certified", "violated", "missed", "cost_share") for name in (what, f"{what}_error")
    }
    found = {"seeds": [0, 1], "skipped": {}, "tables": {"paretobandit": table}, "guarantee": [certified]}
    found["bars"] = list(routing.bars(found))
    console = Console(width=routing.WIDTH, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    for shown in routing.tables(found):
        console.print(shown)
    printed = console.export_text()
    assert "…" not in printed
    assert "What must hold" in printed
    assert {row["bar"][:4] for row in found["bars"]} == {"M ag", "bias", "guar"}
