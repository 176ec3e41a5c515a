import math
import os
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from eccos_integrations import AssignmentProblem, ConfigError, OutcomeTable, Router
from eccos_integrations.assignment import Prices, relaxed_prices
from eccos_integrations.assignment.pacing import Pacer
from eccos_integrations.predictors import RetrievalPredictor

N = 20_000
COST = np.array([1.0, 2.0, 8.0, 20.0]) * 1e-4


def make_rows(n, seed=0, shift=0.0):
    """Dearer models are better, more so on harder queries."""
    rng = np.random.default_rng(seed)
    hard = rng.random((n, 1))
    quality = np.clip(0.95 - hard * [0.8, 0.6, 0.3, 0.1] + rng.normal(0, 0.05, (n, 4)) + shift, 0, 1)
    return quality, COST * rng.lognormal(0, 0.5, (n, 1)) * rng.lognormal(0, 0.1, (n, 4))


def paced(problem, prices=None, **settings_):
    return Pacer(problem, relaxed_prices(problem) if prices is None else prices, **settings_)


def stream(pacer, quality, cost, load=None):
    return [pacer.decide(a, c, load) for a, c in zip(quality.tolist(), cost.tolist(), strict=True)]


def least_cost(quality, cost, floor):
    """A lower bound on the mean cost under the floor: the best of the dual over one price."""

    def minus_dual(log_price):
        price = math.exp(log_price)
        return -((cost - price * quality).min(axis=1).mean() + price * floor)

    unit = cost.mean()
    bounds = (math.log(unit * 1e-4), math.log(unit * 1e4))
    return -minimize_scalar(minus_dual, bounds=bounds, method="bounded").fun


@pytest.fixture(scope="module")
def batch():
    return make_rows(500, seed=1)


@pytest.fixture(scope="module")
def problem(batch):
    return AssignmentProblem(quality=batch[0], cost_usd=batch[1], min_quality=0.8)


@pytest.fixture(scope="module")
def rows():
    return make_rows(N, seed=2)


# Streams: the means hold.


def check_both_orders(forecast, tasks, floor):
    """20,000 queries drawn from a forecast, whose every second row is the last batch, in random and in task order."""
    last = AssignmentProblem(forecast.cost_usd[::2], forecast.quality[::2], min_quality=floor)
    drawn = np.random.default_rng(0).integers(0, len(tasks), N)
    quality, cost = forecast.quality[drawn], forecast.cost_usd[drawn]
    pacer = paced(last)
    stream(pacer, quality, cost)
    assert pacer.mean_quality == pytest.approx(floor, abs=0.005)
    assert pacer.mean_cost_usd <= 1.05 * least_cost(quality, cost, floor)
    by_task = np.argsort(np.array(tasks)[drawn], kind="stable")
    pacer = paced(last)
    stream(pacer, quality[by_task], cost[by_task])
    assert pacer.mean_quality == pytest.approx(floor, abs=0.005)


def best_mean(router, forecast):
    return forecast.quality[:, router.models.index(router.best)].mean()


def test_on_the_sample_the_mean_meets_the_floor_in_random_and_in_task_order(fitted_router, sample_parts):
    forecast = fitted_router.forecast(sample_parts[1].queries)
    check_both_orders(forecast, sample_parts[1].tasks, 0.97 * best_mean(fitted_router, forecast))


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.85, 0.9, 0.97])
def test_on_zeroeval_the_mean_meets_the_floor_in_random_and_in_task_order(fraction):
    path = Path(os.environ.get("ECCOS_DATA_DIR", "")) / "zeroeval.parquet"
    if not path.is_file():
        pytest.skip("zeroeval.parquet is not in ECCOS_DATA_DIR")
    train, test = OutcomeTable.read(path).split(0.5, seed=0)
    router = Router.fit(train, predictor=RetrievalPredictor(k=16, strength=16.0), seed=0)
    forecast = router.forecast(test.queries)
    check_both_orders(forecast, test.tasks, fraction * best_mean(router, forecast))


@pytest.mark.parametrize("times", [0.0, 0.01, 100.0])
def test_bad_prices_are_left_and_made_up_for(problem, rows, times):
    pacer = paced(problem, Prices(quality=relaxed_prices(problem).quality * times))
    stream(pacer, *rows)
    assert pacer.mean_quality == pytest.approx(0.8, abs=0.005)
    before = pacer.mean_cost_usd * pacer.placed
    stream(pacer, *rows)
    assert pacer.mean_cost_usd * 2 * N - before <= 1.05 * N * least_cost(*rows, 0.8)  # by then at the right price


def test_a_stream_that_begins_easy_and_ends_hard_does_not_spend_early_what_it_needs_late(batch, rows):
    floor = 0.84

    def sag(quality, hard):
        return (quality - 0.1 * hard[:, None]).clip(0, 1)

    batch_quality = sag(batch[0], np.arange(500) % 4 == 3)
    quality = sag(rows[0], np.arange(N) >= 3 * N // 4)
    assert quality[-N // 4 :].max(axis=1).mean() < floor - 0.03  # by then it is too late
    pacer = paced(AssignmentProblem(quality=batch_quality, cost_usd=batch[1], min_quality=floor))
    stream(pacer, quality, rows[1])
    assert pacer.mean_quality == pytest.approx(floor, abs=0.005)


def test_a_stream_that_stays_easier_than_the_batch_is_believed_after_the_horizon(problem):
    pacer = paced(problem, horizon=500)
    stream(pacer, *make_rows(N, seed=5, shift=0.05))
    assert pacer.mean_quality == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize("times", [1.0, 0.0, 100.0])
def test_a_budget_alone_is_spent_and_not_passed(batch, rows, times):
    quality, cost = rows
    budget = 4e-4
    last = AssignmentProblem(quality=batch[0], cost_usd=batch[1], max_mean_cost_usd=budget)
    pacer = paced(last, Prices(quality=relaxed_prices(last).quality * times))
    stream(pacer, quality, cost)
    assert pacer.mean_cost_usd == pytest.approx(budget, rel=0.01)
    # At the quality it reached, no assignment costs much less.
    assert budget <= 1.05 * least_cost(quality, cost, pacer.mean_quality)


def test_a_budget_beyond_all_costs_buys_the_best_models(batch, rows):
    pacer = paced(AssignmentProblem(quality=batch[0], cost_usd=batch[1], max_mean_cost_usd=1.0))
    chosen = stream(pacer, *rows)
    assert np.mean(np.array(chosen) == rows[0].argmax(axis=1)) > 0.99


def test_a_budget_that_does_not_bind_leaves_the_floor_alone(problem, batch, rows):
    both = AssignmentProblem(quality=batch[0], cost_usd=batch[1], min_quality=0.8, max_mean_cost_usd=1.0)
    assert stream(paced(both), *rows) == stream(paced(problem), *rows)


def test_a_floor_gives_way_to_a_budget(batch, rows):
    quality, cost = rows
    budget = 0.7 * least_cost(quality, cost, 0.8)
    pacer = paced(AssignmentProblem(quality=batch[0], cost_usd=batch[1], min_quality=0.8, max_mean_cost_usd=budget))
    stream(pacer, quality, cost)
    assert pacer.mean_cost_usd == pytest.approx(budget, rel=0.01)
    assert pacer.mean_quality < 0.8
    assert budget <= 1.05 * least_cost(quality, cost, pacer.mean_quality)


def test_out_of_reach_prices_stay_bounded_and_come_back(problem, rows):
    quality, cost = rows
    pacer = paced(problem)
    stream(pacer, quality[:2000], cost[:2000])
    usual = pacer.prices.quality
    stream(pacer, quality[2000:4000] * 0.5, cost[2000:4000])
    assert usual < pacer.prices.quality <= problem.cost_usd.mean() * 1e4 * (1 + 1e-9)
    early = pacer.prices.quality
    stream(pacer, quality[4000:9000] * 0.5, cost[4000:9000])
    assert pacer.prices.quality == early
    before = pacer.mean_quality * pacer.placed
    stream(pacer, quality[9000:10_000], cost[9000:10_000])
    assert pacer.mean_quality * pacer.placed - before >= 0.8 * 1000  # met again from the first thousand on
    stream(pacer, quality[10_000:15_000], cost[10_000:15_000])
    assert usual / 4 < pacer.prices.quality < usual * 4


def test_a_floor_that_any_model_meets_costs_the_least_and_is_left_in_time(batch, rows):
    pacer = paced(AssignmentProblem(quality=batch[0], cost_usd=batch[1], min_quality=0.2))
    quality, cost = rows
    assert set(stream(pacer, quality[: N // 2], cost[: N // 2])) == {0}
    assert pacer.prices.quality >= batch[1].mean() * 1e-4 * (1 - 1e-9)
    before = pacer.mean_quality * pacer.placed
    stream(pacer, quality[N // 2 :] * 0.25, cost[N // 2 :])
    assert pacer.mean_quality * pacer.placed - before >= (0.2 - 0.05) * N / 2


def test_what_is_owed_after_a_long_time_out_of_reach_is_bounded(problem, rows):
    quality, cost = rows

    def made_up(out_of_reach):
        pacer = paced(problem)
        stream(pacer, quality[:out_of_reach] * 0.5, cost[:out_of_reach])
        before = pacer.mean_quality * pacer.placed
        stream(pacer, *make_rows(5000, seed=3))
        return pacer.mean_quality * pacer.placed - before

    assert made_up(15_000) == pytest.approx(made_up(3000), rel=0.01)


def test_falling_quality_is_paid_for_and_dearer_models_are_followed(problem, rows):
    quality, cost = rows
    time = np.linspace(0, 1, N)[:, None]
    for a, c in ((quality - 0.05 * time, cost), (quality, cost * 10**time), (quality, cost * 0.1**time)):
        pacer = paced(problem)
        stream(pacer, a.clip(0, 1), c)
        assert pacer.mean_quality == pytest.approx(0.8, abs=0.005)


def test_rising_quality_never_goes_below_the_floor_and_resolve_spends_what_is_too_much(problem, rows):
    quality = (rows[0] + np.linspace(0, 0.05, N)[:, None]).clip(0, 1)
    pacer = paced(problem)
    stream(pacer, quality, rows[1])
    assert pacer.mean_quality >= 0.8 - 0.005
    pacer = paced(problem)
    for part in range(0, N, 2000):
        stream(pacer, quality[part : part + 2000], rows[1][part : part + 2000])
        pacer.resolve()
    assert pacer.mean_quality == pytest.approx(0.8, abs=0.005)


@settings(max_examples=20, deadline=None)
@given(st.integers(-40, 15), st.floats(0.6, 0.9))
def test_the_unit_of_cost_does_not_matter(exponent, floor):
    quality, cost = make_rows(500, seed=4)
    decisions = []
    for unit in (1.0, 2.0**exponent):
        last = AssignmentProblem(quality=quality, cost_usd=cost * unit, min_quality=floor)
        decisions.append(stream(Pacer(last, Prices(quality=1e-3 * unit)), quality, cost * unit))
    assert np.mean(np.array(decisions[0]) == decisions[1]) > 0.99  # logarithms round


# Small pools and odd rows.


def test_one_model_gets_everything():
    last = AssignmentProblem(cost_usd=[[1.0]], quality=[[0.5]], min_quality=0.9)
    pacer = Pacer(last, Prices())
    assert {pacer.decide([0.5], [1.0], load) for load in (None, [0.0], [0.99])} == {0}
    assert pacer.decide([0.5], [1.0], [1.0]) == -1


def test_without_floor_or_budget_the_cheapest_is_taken():
    last = AssignmentProblem(cost_usd=[[1.0, 2.0]], quality=[[0.5, 1.0]])
    pacer = Pacer(last, Prices())
    assert [pacer.decide([0.1, 1.0], cost) for cost in ([1.0, 2.0], [3.0, 2.0])] == [0, 1]


def test_equal_queries_are_mixed_so_that_the_mean_is_met():
    cost, quality = [1.0, 2.0, 5.0], [0.5, 0.7, 0.9]
    pacer = Pacer(AssignmentProblem(cost_usd=[cost], quality=[quality], min_quality=0.62), Prices())
    chosen = [pacer.decide(quality, cost) for _ in range(N)]
    assert pacer.mean_quality == pytest.approx(0.62, abs=0.005)
    assert len(set(chosen)) > 1


def test_models_that_are_all_free_are_told_apart_by_quality():
    last = AssignmentProblem(cost_usd=[[0.0, 0.0]], quality=[[0.5, 0.9]], min_quality=0.9)
    assert Pacer(last, Prices()).decide([0.5, 0.9], [0.0, 0.0]) == 1


def test_a_free_model_is_no_special_case(batch, rows):
    free = [0.0, 1.0, 1.0, 1.0]
    pacer = paced(AssignmentProblem(quality=batch[0], cost_usd=batch[1] * free, min_quality=0.8))
    stream(pacer, rows[0], rows[1] * free)
    assert pacer.mean_quality == pytest.approx(0.8, abs=0.005)
    assert pacer.mean_cost_usd <= 1.05 * least_cost(rows[0], rows[1] * free, 0.8)


# Load.


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 2), st.just(math.inf)), min_size=4, max_size=4), st.integers(0, 99))
def test_a_full_model_is_never_chosen(load, row):
    quality, cost = make_rows(100)
    pacer = Pacer(AssignmentProblem(quality=quality, cost_usd=cost, min_quality=0.8), Prices(quality=1e-3))
    chosen = pacer.decide(quality[row], cost[row], load)
    assert (chosen == -1) == all(share >= 1 for share in load)
    assert chosen == -1 or load[chosen] < 1


def test_a_query_that_found_all_full_leaves_no_trace(problem):
    pacer = paced(problem)
    price = pacer.prices.quality
    assert pacer.decide([0.1] * 4, [1.0] * 4, [1.0, 1.0, 2.0, math.inf]) == -1
    assert (pacer.placed, pacer.prices.quality) == (0, price)
    assert math.isnan(pacer.mean_quality)


def test_a_model_is_left_gradually_as_its_limit_nears(problem, rows):
    quality, cost = (part[:3000] for part in rows)

    def share_of_third(load):
        return np.mean(np.array(stream(paced(problem), quality, cost, [0.0, 0.0, load, 0.0])) == 2)

    shares = [share_of_third(load) for load in (0.0, 0.5, 0.7, 0.8, 0.9, 0.99)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.2
    assert shares[1] > 0.9 * shares[0]  # half full is no reason yet
    assert 0.05 * shares[0] < shares[3] < 0.95 * shares[0]
    assert shares[-1] < 0.01


def test_models_with_room_take_over_before_one_is_full(problem, rows):
    quality, cost = rows
    limits = np.array([40, 40, 6, 40])
    pacer, running = paced(problem), []
    for a, c in zip(quality[:5000].tolist(), cost[:5000].tolist(), strict=True):
        running = running[-29:]  # each query takes as long as 30 arrivals
        chosen = pacer.decide(a, c, np.bincount(running, minlength=4) / limits)
        running.append(chosen)
        assert np.bincount(running, minlength=4)[2] <= 6
    assert pacer.placed == 5000
    assert pacer.mean_quality == pytest.approx(0.8, abs=0.02)


def test_a_model_that_only_its_batch_price_kept_others_off_is_left_near_its_limit():
    # At this price the batch hardly cared which of the two it took, so the distance between them says nothing.
    last = AssignmentProblem(cost_usd=[[1.0, 1.5], [1.0, 1.52]], quality=[[0.5, 0.5]] * 2, capacity=[1, 2])
    pacer = Pacer(last, Prices(loads={"capacity": np.array([0.5, 0.0])}))
    assert [pacer.decide([0.5, 0.5], [1.0, 1.5], [share, 0.0]) for share in (0.0, 0.5, 0.9)] == [0, 0, 1]


def test_a_price_for_the_least_share_draws_queries():
    last = AssignmentProblem(cost_usd=[[1.0, 2.0]] * 4, quality=[[0.5, 0.5]] * 4, min_share=[0.0, 0.5])
    assert Pacer(last, Prices(min_share=np.array([0.0, 1.5]))).decide([0.5, 0.5], [1.0, 2.0]) == 1


# Input, state and threads.


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (([0.5, math.nan, 0.5, 0.5], [1.0] * 4), "quality_row: nan for model 1"),
        (([0.5, 0.5, 0.5, 1.5], [1.0] * 4), "quality_row: 1.5 for model 3"),
        (([-0.1, 0.5, 0.5, 0.5], [1.0] * 4), "quality_row: -0.1 for model 0"),
        (([0.5] * 4, [1.0, 1.0, 1.0, math.nan]), "cost_row: nan for model 3"),
        (([0.5] * 4, [1.0, math.inf, 1.0, 1.0]), "cost_row: inf for model 1"),
        (([0.5] * 4, [1.0, -1.0, 1.0, 1.0]), "cost_row: -1.0 for model 1"),
        (([0.5] * 4, [1e308] * 4), "cost_row: its sum"),
        (([0.5] * 4, [1.0] * 4, [0.0, 0.0, math.nan, 0.0]), "load: nan for model 2"),
        (([0.5] * 4, [1.0] * 4, [0.0, 0.0, -1.0, 0.0]), "load: -1.0 for model 2"),
        (([0.5] * 3, [1.0] * 4), "quality_row: 3 values for 4 models"),
        (([0.5] * 4, [1.0] * 5), "cost_row: 5 values for 4 models"),
        (([0.5] * 4, [1.0] * 4, []), "load: 0 values for 4 models"),
        (([], [1.0] * 4), "quality_row: 0 values for 4 models"),
        ((["good"] * 4, [1.0] * 4), "not rows of numbers"),
        ((0.5, [1.0] * 4), "not rows of numbers"),
    ],
)
def test_rows_that_are_no_forecast_are_refused_by_name_and_change_nothing(problem, rows, words):
    pacer = paced(problem)
    before = pickle.dumps(pacer)
    for form in (list, np.array):
        with pytest.raises(ConfigError, match=words):
            pacer.decide(*(form(row) if isinstance(row, list) else row for row in rows))
    assert pickle.dumps(pacer) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"horizon": 0}, "horizon: 0"),
        ({"window": 0}, "window: 0"),
        ({"prices": Prices(quality=math.nan)}, "prices"),
        ({"prices": Prices(quality=-1.0)}, "prices"),
        ({"prices": Prices(quality={"a": 1.0})}, "prices"),
        ({"prices": Prices(loads={"capacity": np.full(4, math.inf)})}, "prices"),
        ({"problem": AssignmentProblem(np.zeros((0, 4)), np.zeros((0, 4)))}, "no queries"),
        ({"problem": AssignmentProblem([[1.0]], [[1.0]], min_quality={"a": 0.5}, groups=["a"])}, "per group"),
    ],
)
def test_what_no_stream_can_start_from_is_refused(problem, change, words):
    with pytest.raises(ConfigError, match=words):
        Pacer(**{"problem": problem, "prices": Prices()} | change)


def test_lists_and_arrays_decide_alike_and_the_same_calls_decide_the_same(problem, rows):
    quality, cost = (part[:2000] for part in rows)
    load = [0.0, 0.3, 0.8, 0.2]
    from_lists = stream(paced(problem), quality, cost, load)
    pacer = paced(problem)
    assert [pacer.decide(a, c, np.array(load)) for a, c in zip(quality, cost, strict=True)] == from_lists


def test_a_pickled_pacer_goes_on_where_it_was(problem, rows):
    quality, cost = rows
    pacer = paced(problem, horizon=1000, window=50)
    stream(pacer, quality[:500], cost[:500])
    copy = pickle.loads(pickle.dumps(pacer))
    assert stream(copy, quality[500:1000], cost[500:1000]) == stream(pacer, quality[500:1000], cost[500:1000])
    assert copy.resolve().quality == pacer.resolve().quality


def test_threads_lose_no_decision(problem, rows):
    quality, cost = rows
    pacer, taken = paced(problem), []

    def work(part):
        chosen = stream(pacer, quality[part], cost[part])
        taken.append((quality[part][np.arange(len(chosen)), chosen].sum(), len(chosen)))

    threads = [threading.Thread(target=work, args=(slice(k, 8000, 4),)) for k in range(4)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        pacer.resolve()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    assert pacer.placed == sum(count for _, count in taken) == 8000
    assert pacer.mean_quality == pytest.approx(sum(total for total, _ in taken) / 8000)


# Resolve.


def test_resolve_restarts_from_the_prices_of_the_last_rows(problem, rows):
    quality, cost = rows
    pacer = paced(problem, Prices(quality=100.0), window=300)
    stream(pacer, quality[:1000], cost[:1000])
    window = AssignmentProblem(quality=quality[700:1000], cost_usd=cost[700:1000], min_quality=0.8)
    assert pacer.resolve().quality == pytest.approx(relaxed_prices(window).quality)
    assert pacer.placed == 1000
    stream(pacer, quality[1000:1010], cost[1000:1010])  # and what it has to spare moves it from there, not at once
    assert pacer.prices.quality == pytest.approx(relaxed_prices(window).quality, rel=0.5)


def test_what_is_owed_stays_owed_after_resolve(problem, rows):
    quality, cost = rows
    pacer = paced(problem, Prices())
    stream(pacer, quality[:500], cost[:500])
    assert pacer.mean_quality < 0.75
    pacer.resolve()
    stream(pacer, quality[500:], cost[500:])
    assert pacer.mean_quality == pytest.approx(0.8, abs=0.005)


def test_resolve_keeps_capacity_as_a_share_of_the_batch(batch, rows):
    capacity = np.array([500.0, 500.0, 50.0, 500.0])
    last = AssignmentProblem(quality=batch[0], cost_usd=batch[1], min_quality=0.8, capacity=capacity)
    pacer = paced(last, window=200)
    stream(pacer, rows[0][:200], rows[1][:200])
    window = AssignmentProblem(
        quality=rows[0][:200], cost_usd=rows[1][:200], min_quality=0.8, capacity=np.array([200, 200, 20, 200])
    )
    assert pacer.resolve().loads["capacity"] == pytest.approx(relaxed_prices(window).loads["capacity"])


def test_rows_are_kept_as_they_were_when_decided(problem, rows):
    row = [rows[0][0].tolist(), rows[1][0].tolist()]
    pacer = paced(problem)
    pacer.decide(*row)
    row[0][:] = [math.nan] * 4
    row[1][:] = [math.nan] * 4
    assert math.isfinite(pacer.resolve().quality)


def test_resolve_before_the_first_decision_changes_nothing(problem):
    pacer = paced(problem)
    before = pickle.dumps(pacer)
    assert pacer.resolve().quality == pacer.prices.quality
    assert pickle.dumps(pacer) == before
