"""Evaluation: every number comes from the outcomes."""

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from eccos_integrations import Forecast, Model, ModelPool, OutcomeTable, Policy, Router, load_sample
from eccos_integrations.evaluation import baselines, evaluate, realise
from eccos_integrations.evaluation.report import evaluation_tables


@pytest.fixture(scope="module")
def report():
    return evaluate(load_sample(), predictor="retrieval", seed=1)


def rows_by(report):
    return {(row.name, row.floor): row for row in report.rows}


def assert_rows_are_in_the_raw_table(report, raw, path_seed):
    """Quality and cost of the fixed rules, from the raw table alone, and of ECCOS from a router fitted again."""
    fit, test = raw.split(0.7, seed=path_seed)
    rows = rows_by(report)
    common = np.isfinite(fit.quality).all(axis=1)
    best = fit.models[int(np.argmax(fit.quality[common].mean(axis=0)))]
    assert report.best == best
    expected = {
        ("best single", None): [fit.models.index(best)] * len(test),
        ("hindsight best", None): [int(np.argmax(test.quality.mean(axis=0)))] * len(test),
        ("cheapest", None): [int(np.argmin(fit.cost_usd.mean(axis=0)))] * len(test),
        ("round-robin", None): [i % len(fit.models) for i in range(len(test))],
    }
    router = Router.fit(fit, predictor=report.predictor, seed=path_seed)
    for floor in (0.95, 0.97, 0.99, 1.0):
        plan = router.plan(test.queries, Policy(min_quality=floor, relative_to="best"))
        expected["eccos", floor] = [test.models.index(model) for model in plan.models]
    for key, columns in expected.items():
        quality = sum(test.quality[i, j] for i, j in enumerate(columns)) / len(test)
        cost = sum(test.cost_usd[i, j] for i, j in enumerate(columns)) / len(test)
        assert rows[key].realised.mean_quality == pytest.approx(quality)
        assert rows[key].realised.mean_cost_usd == pytest.approx(cost)
        best_cost = test.cost_usd[:, fit.models.index(best)].mean()
        assert rows[key].cost_of_best == pytest.approx(cost / best_cost)
        assert sum(rows[key].realised.shares.values()) == pytest.approx(1)
    oracle = rows["oracle", None].realised
    assert oracle.mean_quality == pytest.approx(test.quality.max(axis=1).mean())
    assert oracle.mean_quality >= max(row.realised.mean_quality for row in report.rows) - 1e-12


def test_realised_quality_and_cost_are_those_of_the_raw_sample(report):
    assert_rows_are_in_the_raw_table(report, load_sample(), 1)


@pytest.mark.slow
def test_realised_quality_and_cost_are_those_of_raw_zeroeval():
    path = Path(os.environ.get("ECCOS_DATA_DIR", "")) / "zeroeval.parquet"
    if not path.is_file():
        pytest.skip("zeroeval.parquet is not in ECCOS_DATA_DIR")
    raw = OutcomeTable.read(path)
    assert len(raw.models) == 27
    assert_rows_are_in_the_raw_table(evaluate(raw, predictor="retrieval", seed=2), raw, 2)


def test_every_rule_of_the_report_is_there(report):
    names = [(row.name, row.floor) for row in report.rows]
    floors = [0.95, 0.97, 0.99, 1.0]
    assert names == [
        *((name, None) for name in ("best single", "hindsight best", "cheapest", "random", "round-robin")),
        *(("threshold", floor) for floor in floors),
        *(("eccos", floor) for floor in floors),
        ("oracle", None),
    ]


def test_eccos_meets_its_floor_on_forecasts(report):
    best = rows_by(report)["best single", None]
    for row in report.rows:
        if row.name == "eccos":
            assert row.forecast_quality >= row.floor * best.forecast_quality - 1e-9


def test_a_higher_floor_costs_no_less_on_forecasts(report):
    costs = [row.forecast_cost_usd for row in report.rows if row.name == "eccos"]
    assert all(first <= second * (1 + 1e-3) for first, second in pairwise(costs))


def test_the_report_is_plain_json_and_the_same_every_time(report):
    once = json.dumps(report.to_dict(), allow_nan=False)
    assert once == json.dumps(evaluate(load_sample(), predictor="retrieval", seed=1).to_dict(), allow_nan=False)
    figures, shares = evaluation_tables(report)
    assert figures.row_count == shares.row_count == len(report.rows)


def test_the_threshold_rule_takes_the_cheapest_that_reaches_the_floor():
    quality = np.array([[0.9, 0.8, 0.7], [0.5, 0.6, 0.4]])
    cost = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    unknown = np.full((2, 3), np.nan)
    forecast = Forecast(["a", "b", "c"], quality, cost, unknown, unknown, unknown)
    assert baselines.threshold(forecast, 0.75).tolist() == [1, 1]


def test_the_oracle_is_the_cheapest_of_the_right():
    table = OutcomeTable(["x", "y"], ["x", "y"], ["a", "b", "c"], [[1, 1, 0], [0, np.nan, 0]], [[3, 2, 1], [3, 2, 1]])
    assert baselines.oracle(table).tolist() == [1, 2]


def test_unobserved_outcomes_count_neither_way():
    table = OutcomeTable(["x", "y"], ["x", "y"], ["a", "b"], [[1, np.nan], [0, 1]], [[2, np.nan], [4, 1]])
    realised = realise(table, np.array([1, 0]))
    assert (realised.mean_quality, realised.mean_cost_usd, realised.observed) == (0.0, 4.0, 0.5)


def test_costs_that_were_not_observed_come_from_the_pools_prices():
    sample = load_sample()
    bare = OutcomeTable(
        sample.query_ids,
        sample.queries,
        sample.models,
        sample.quality,
        input_tokens=sample.input_tokens,
        output_tokens=sample.output_tokens,
        tasks=sample.tasks,
    )
    pool = ModelPool.from_outcomes(sample)
    report = evaluate(bare, pool, predictor="retrieval", floors=[0.97])
    with_costs = evaluate(sample, predictor="retrieval", floors=[0.97])
    for ours, theirs in zip(report.rows, with_costs.rows, strict=True):
        assert ours.realised.mean_cost_usd == pytest.approx(theirs.realised.mean_cost_usd, rel=0.01)


def test_models_of_the_pool_without_outcomes_are_left_out_of_the_report():
    sample = load_sample()
    new = Model(name="new", input_usd_per_million_tokens=99, output_usd_per_million_tokens=99)
    pool = ModelPool([*ModelPool.from_outcomes(sample), new])
    report = evaluate(sample, pool, predictor="retrieval", floors=[0.97])
    assert all("new" not in row.realised.shares for row in report.rows)
