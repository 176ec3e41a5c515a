import itertools
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations.errors import ConfigError
from eccos_integrations.guarantee import Evidence, Guarantee, certify
from eccos_integrations.guarantee.bounds import BOUNDS, betting, capital, last_pass, student
from eccos_integrations.guarantee.evidence import Routed, price_grid

MODELS = 4
BEST = 3
COST = np.array([1e-4, 3e-4, 1e-3, 4e-3])
ALL = np.array([True])


def population(rng, n, kind="binary"):
    """Queries of varied difficulty; dearer models are better, and forecasts see part of the difficulty."""
    hardness = rng.random((n, 1))
    skill = np.array([0.55, 0.75, 0.9, 1.0])
    if kind == "rare loss":  # every model nearly always right
        mean = 1 - 0.12 * (1.2 - skill) * hardness**3
    else:
        mean = np.clip(1.1 * skill - 0.7 * hardness * (1.25 - skill), 0.02, 0.98)
    spread = rng.normal(0, 0.1, (n, 1))
    quality = np.clip(mean + spread * (1 - skill), 0, 1)
    cost = COST * np.exp(rng.normal(0, 0.3, (n, MODELS)))
    if kind == "continuous":
        outcome = rng.beta(8 * mean, 8 * (1 - mean))
    else:
        outcome = (rng.random((n, MODELS)) < mean).astype(float)
    return Evidence(quality, cost, outcome, cost)


def take(evidence, rows):
    return Evidence(
        evidence.quality[rows], evidence.cost_usd[rows], evidence.outcome[rows], evidence.outcome_cost_usd[rows]
    )


def with_outcome(evidence, outcome):
    return Evidence(evidence.quality, evidence.cost_usd, outcome, evidence.outcome_cost_usd)


def realised(evidence, price, best=BEST):
    chosen = np.argmin(evidence.cost_usd - price * evidence.quality, axis=1)
    return evidence.outcome[np.arange(len(evidence)), chosen].mean() / evidence.outcome[:, best].mean()


def at(floor, **changes):
    return {"best": BEST, "floor": floor, "confidence": 0.95} | changes


@pytest.fixture(scope="module")
def fit():
    return population(np.random.default_rng(0), 1000)


@pytest.fixture(scope="module")
def calibration():
    return population(np.random.default_rng(1), 800)


# ---- the tests themselves


def test_the_capital_is_that_of_a_hand_reckoned_gamble():
    gains = np.array([[0.5], [-0.25], [0.5]])
    # 32 rows are believed, with squares 30 * 1^2 + 2 * 0.5^2 = 30.5, and the goal is 4 times the start. First bet:
    # 0.85 sqrt(2 ln 4 / 3 rows to come / (30.5 / 32)) = 0.83700.
    first = 1 + 0.8370012 * 0.5
    # Now 33 rows with squares 30.75, mean 0.5 / 33: 0.85 sqrt(2 ln(4 / 1.4185) / 2 / (30.75 / 33)) = 0.89656.
    second = first * (1 - 0.8965585 * 0.25)
    # Now 34 rows with squares 30.75 + (-0.25 - 0.01515)^2: 0.85 sqrt(2 ln(4 / 1.10056) / (30.82031 / 34)) = 1.43427.
    third = second * (1 + 1.4342669 * 0.5)
    assert capital(gains, ALL * 0.5, 4.0, ALL * 1.0) == pytest.approx([third], rel=1e-6)


def test_capital_stops_at_the_goal_and_never_falls_below_nothing():
    assert capital(np.array([[1.0]] * 5 + [[-0.9]] * 5), ALL * 0.9, 20.0, ALL * 0.1)[0] >= 20
    assert capital(np.array([[-0.9]] * 9), ALL * 0.9, 20.0, ALL * 0.1)[0] == 0


def at_the_null(rng, name, n, k):
    """Draws with mean exactly 0 and none below -worst."""
    if name == "rare loss":
        return 0.95, np.where(rng.random((n, k)) < 0.02 / 0.97, -0.95, 0.02)
    if name == "paired":  # lost, both wrong, both right, won, at a floor of 0.9
        values, chance = [-0.9, 0.0, 0.1, 1.0], np.array([0.11, 0.1, 0.79 - 0.02, 0.02])
        chance[0] = (0.1 * chance[2] + chance[3]) / 0.9
        chance[1] = 1 - chance[[0, 2, 3]].sum()
        return 0.9, rng.choice(values, (n, k), p=chance)
    if name == "rare win":
        return 0.1, np.where(rng.random((n, k)) < 0.1, 0.9, -0.1)
    return 0.8, 1.8 * (rng.beta(4, 5, (n, k)) - 4 / 9)


@pytest.mark.parametrize("n", [5, 60, 400])
@pytest.mark.parametrize("name", ["rare loss", "paired", "rare win", "continuous"])
@pytest.mark.parametrize(("level", "spread"), [(0.05, 0.3), (0.3, 0.02)])
def test_betting_says_yes_wrongly_no_more_often_than_it_may(name, n, level, spread):
    k = 2000
    worst, gains = at_the_null(np.random.default_rng(n), name, n, k)
    wrong = betting(gains, np.full(k, worst), level, np.full(k, spread)).mean()
    assert wrong <= level + 3 * math.sqrt(level * (1 - level) / k)
    assert (capital(gains, np.full(k, worst), 1 / level, np.full(k, spread)) >= 0).all()


@pytest.mark.parametrize("n", [10, 60, 400])
@pytest.mark.parametrize("name", ["rare loss", "paired", "rare win", "continuous"])
def test_students_t_is_wrong_about_as_often_as_it_may(name, n):
    k = 2000
    worst, gains = at_the_null(np.random.default_rng(n), name, n, k)
    assert student(gains, np.full(k, worst), 0.05, np.full(k, 0.3)).mean() <= 0.07


def test_betting_comes_close_to_the_power_of_students_t():
    rng = np.random.default_rng(0)
    gains = rng.choice([-0.95, 0.0, 0.05, 1.0], (568, 2000), p=[0.065, 0.12, 0.755, 0.06])
    worst, spread = np.full(2000, 0.95), np.full(2000, 0.35)
    powers = {name: test(gains, worst, 0.05, spread).mean() for name, (test, _) in BOUNDS.items()}
    assert 0.75 < powers["clt"] < 0.85
    assert powers["wsr"] > 0.85 * powers["clt"]


@pytest.mark.parametrize("test", [betting, student])
def test_all_right_is_proof_only_from_as_many_rows_as_chance_could_not_give(test):
    # If 1 in 20 were wrong the mean gain at 0.95 would be 0; n right in a row then have probability 0.95^n.
    gains = np.full((200, 1), 0.05)
    needed = math.log(0.05) / math.log(0.95)  # 58.4
    least = next(n for n in range(1, 201) if test(gains[:n], ALL * 0.95, 0.05, ALL * 0.0)[0])
    assert needed <= least <= 2 * needed


def test_students_t_leaves_few_rows_to_betting():
    gains = np.random.default_rng(5).uniform(-0.5, 0.9, (29, 500))
    few = (gains, np.full(500, 0.6), 0.1, np.full(500, 0.4))
    assert student(*few).tolist() == betting(*few).tolist()
    more = (np.vstack([gains, gains[:1]]), *few[1:])
    assert student(*more).sum() > betting(*more).sum()


def test_a_floor_of_nothing_needs_no_rows():
    for test in (betting, student):
        assert test(np.zeros((0, 1)), ALL * 0.0, 0.05, ALL * 0.0).all()
        assert test(np.zeros((50, 1)), ALL * 0.0, 0.05, ALL * 0.0).all()
        assert not test(np.zeros((0, 1)), ALL * 0.5, 0.05, ALL * 0.0).any()


@pytest.mark.parametrize("test", [betting, student])
def test_rows_that_say_nothing_are_as_if_they_were_not_there(test):
    rng = np.random.default_rng(3)
    gains = rng.uniform(-0.5, 0.9, (300, 40)) - 0.12
    holed = np.where(rng.random(gains.shape) < 0.4, np.nan, gains)
    together = test(holed, np.full(40, 0.7), 0.1, np.full(40, 0.4))
    alone = [test(column[~np.isnan(column)][:, None], ALL * 0.7, 0.1, ALL * 0.4)[0] for column in holed.T]
    assert together.tolist() == alone
    assert 0 < together.sum() < 40


def test_the_last_pass_is_the_one_before_the_first_failure():
    for n in range(7):
        for flags in itertools.product([False, True], repeat=n):
            expected = -1
            for position, passed in enumerate(flags):
                if not passed:
                    break
                expected = position
            assert last_pass(np.array(flags, dtype=bool)) == expected


# ---- what is certified


@pytest.mark.parametrize("kind", ["binary", "continuous", "rare loss"])
@pytest.mark.parametrize(("floor", "confidence", "n"), [(0.9, 0.8, 120), (0.97, 0.9, 300)])
def test_a_certified_price_is_below_the_floor_no_more_often_than_it_may(kind, floor, confidence, n):
    rng = np.random.default_rng(7)
    fit, everyone = population(rng, 300, kind), population(rng, 1500, kind)
    wrong = 0
    for seed in range(80):
        some = take(everyone, rng.integers(len(everyone), size=n))
        found = certify(fit, some, best=BEST, floor=floor, confidence=confidence, seed=seed)
        wrong += found.certified and realised(everyone, found.price) < floor
    level = 1 - confidence
    assert wrong / 80 <= level + 2.5 * math.sqrt(level * confidence / 80)


def test_holes_left_by_chance_do_not_make_it_wrong_more_often():
    rng = np.random.default_rng(8)
    fit, everyone = population(rng, 300), population(rng, 1500)
    wrong = certified = 0
    for seed in range(80):
        some = take(everyone, rng.integers(len(everyone), size=400))
        share = np.array([0.1, 0.3, 0.0, 0.1])
        some = with_outcome(some, np.where(rng.random(some.outcome.shape) < share, np.nan, some.outcome))
        found = certify(fit, some, best=BEST, floor=0.9, confidence=0.8, seed=seed)
        certified += found.certified
        wrong += found.certified and realised(everyone, found.price) < 0.9
    assert certified > 60
    assert wrong / 80 <= 0.2 + 2.5 * 0.4 / math.sqrt(80)


def test_more_rows_certify_a_cheaper_price_and_a_higher_floor_a_dearer_one(fit):
    fit = take(fit, slice(250))

    def price(n, floor, bound):
        rng = np.random.default_rng(2)
        found = [certify(fit, population(rng, n), **at(floor, bound=bound)) for _ in range(8)]
        return np.mean([each.price if each.certified else 1.0 for each in found])

    for bound in BOUNDS:
        assert price(100, 0.9, bound) > price(400, 0.9, bound) > price(1600, 0.9, bound)
        assert price(400, 0.85, bound) < price(400, 0.9, bound) < price(400, 0.96, bound)


def test_it_is_the_cheapest_price_before_the_first_failure(fit, calibration):
    prices = price_grid(fit)
    known = Routed.observed(fit, prices, BEST)
    tested = Routed.provable(calibration, prices, BEST).shuffled(5)
    for floor in (0.8, 0.9, 0.95):
        order = known.safest_first(floor)
        answer = math.nan
        for column in order:
            chosen = np.argmin(fit.cost_usd - prices[column] * fit.quality, axis=1)
            gain = fit.outcome[np.arange(len(fit)), chosen] - floor * fit.outcome[:, BEST]
            spread = np.sqrt((((gain - gain.mean()) ** 2).sum() + 2 * floor**2) / (len(gain) + 2))
            if not betting(tested.gains([column], ALL * floor), ALL * floor, 0.05, ALL * spread)[0]:
                break
            answer = prices[column]
        found = certify(fit, calibration, **at(floor, seed=5))
        assert found.price == answer
        assert len(order) > 5


def test_prices_and_their_order_know_only_the_fit_part(fit, calibration):
    right, wrong = (with_outcome(calibration, np.full(calibration.outcome.shape, y)) for y in (1.0, 0.0))
    order = Routed.observed(fit, price_grid(fit), BEST).safest_first(0.9)
    assert certify(fit, right, **at(0.9)).price == price_grid(fit)[order[-1]]
    assert not certify(fit, wrong, **at(0.9)).certified


def test_the_order_begins_with_the_surest_and_only_ever_gets_cheaper(fit):
    known = Routed.observed(fit, price_grid(fit), BEST)
    order = known.safest_first(0.9)
    mean, spread = known.moments([*range(len(price_grid(fit)))], np.full(len(price_grid(fit)), 0.9))
    sure = mean / spread
    cost = known.cost_usd.mean(axis=0)
    affordable = cost <= fit.outcome_cost_usd[:, BEST].mean()
    assert sure[order[0]] == sure[affordable].max()
    assert (np.diff(sure[order]) <= 0).all()
    assert (np.diff(cost[order]) < 0).all()


def test_prices_reach_from_the_cheapest_to_the_forecast_best(fit):
    prices = price_grid(fit)
    assert 30 <= len(prices) <= 40
    assert (np.diff(prices) > 0).all()
    ends = [np.argmin(fit.cost_usd - price * fit.quality, axis=1) for price in prices[[0, -1]]]
    assert (ends[0] == np.argmin(fit.cost_usd, axis=1)).mean() > 0.97
    assert (ends[1] == np.argmax(fit.quality, axis=1)).mean() > 0.97
    spent = [np.take_along_axis(fit.cost_usd, np.argmin(fit.cost_usd - p * fit.quality, 1)[:, None], 1).mean()
             for p in prices]  # fmt: skip
    assert np.diff(np.log(spent)).max() < 4 * np.log(spent[-1] / spent[0]) / 40


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_order_of_rows_and_of_models_changes_nothing(fit, calibration, bound):
    asked = at(0.93, bound=bound)
    found = certify(fit, calibration, **asked)
    moved = take(calibration, np.random.default_rng(0).permutation(len(calibration)))
    assert found.certified
    assert found == certify(fit, moved, **asked)
    models = [2, 3, 0, 1]
    moved = [
        Evidence(part.quality[:, models], part.cost_usd[:, models], part.outcome[:, models],
                 part.outcome_cost_usd[:, models])
        for part in (fit, calibration)
    ]  # fmt: skip
    again = certify(*moved, **asked | {"best": models.index(BEST)})
    assert again.price == pytest.approx(found.price)
    assert (again.lower_bound, again.sample_size) == (found.lower_bound, found.sample_size)


def test_the_same_seed_gives_the_same_guarantee(fit, calibration):
    assert certify(fit, calibration, **at(0.9, seed=3)) == certify(fit, calibration, **at(0.9, seed=3))


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_lower_bound_is_the_largest_floor_that_passes_at_the_price(fit, calibration, bound):
    found = certify(fit, calibration, **at(0.9, bound=bound))
    test, pools = BOUNDS[bound]
    prices = price_grid(fit)
    column = prices.tolist().index(found.price)
    known = Routed.observed(fit, prices, BEST)
    tested = Routed.provable(fit.joined(calibration) if pools else calibration, prices, BEST).shuffled(0)
    passes = [
        test(tested.gains([column], ALL * f), ALL * f, 0.05, known.moments([column], ALL * f)[1])[0]
        for f in (found.lower_bound, found.lower_bound + 0.001)
    ]
    assert passes == [True, False]
    assert found.lower_bound >= 0.9


def test_what_is_not_certified_names_the_largest_floor_that_is(fit, calibration):
    few = take(calibration, slice(60))
    found = certify(fit, few, **at(0.99))
    assert not found.certified
    assert math.isnan(found.price)
    assert math.isnan(found.lower_bound)
    assert f"{found.largest_floor:g} of best's is certified" in found.message
    assert certify(fit, few, **at(found.largest_floor)).certified
    assert not certify(fit, few, **at(found.largest_floor + 0.005)).certified


def test_no_price_dearer_than_the_best_single_model_is_certified(fit, calibration):
    known = Routed.observed(fit, price_grid(fit), 1)
    order = known.safest_first(0.5)
    assert known.cost_usd[:, order].mean(axis=0).max() <= fit.outcome_cost_usd[:, 1].mean()
    assert known.cost_usd.mean(axis=0).max() > fit.outcome_cost_usd[:, 1].mean()


def test_an_absolute_floor_is_about_the_mean_quality_itself(fit, calibration):
    found = certify(fit, calibration, best=None, floor=0.75, confidence=0.95)
    chosen = np.argmin(calibration.cost_usd - found.price * calibration.quality, axis=1)
    mean = calibration.outcome[np.arange(len(calibration)), chosen].mean()
    assert found.certified
    assert found.relative_to is None
    assert 0.75 <= found.lower_bound < mean < 1
    assert not certify(fit, calibration, best=None, floor=0.97, confidence=0.95).certified


def test_crossfit_counts_the_fit_part_as_evidence_and_says_it_is_approximate(fit, calibration):
    none = take(calibration, slice(0))
    alone, both = (certify(fit, part, **at(0.93, bound="crossfit")) for part in (none, calibration))
    assert alone.certified
    assert alone.sample_size == len(fit)
    assert both.sample_size == len(fit) + len(calibration)
    assert "approximate" in alone.message
    assert not certify(fit, none, **at(0.93)).certified


def test_few_rows_for_the_floor_are_told(fit, calibration):
    assert "about 500 would" in certify(fit, take(calibration, slice(300)), **at(0.85)).message
    assert "about 1000 would" in certify(fit, calibration, **at(0.95)).message
    assert "about 1410 would" in certify(fit, calibration, **at(0.965)).message
    assert "would save more" not in certify(fit, calibration, **at(0.9)).message


# ---- what was not observed


def test_rows_count_where_all_models_in_use_and_the_best_were_observed(fit, calibration):
    outcome = calibration.outcome.copy()
    outcome[:100, BEST] = np.nan
    found = certify(fit, with_outcome(calibration, outcome), **at(0.9))
    assert found.certified
    assert found.sample_size == len(calibration) - 100
    assert found.price == certify(fit, take(calibration, slice(100, None)), **at(0.9)).price


def test_no_row_counts_without_the_best_and_each_price_has_its_own(fit, calibration):
    outcome = calibration.outcome.copy()
    outcome[:100, BEST] = outcome[100:200, 0] = np.nan
    holed, prices = with_outcome(calibration, outcome), price_grid(fit)
    counts = np.isfinite(Routed.provable(holed, prices, BEST).quality).sum(axis=0)
    cheapest = [(np.argmin(calibration.cost_usd - p * calibration.quality, axis=1) == 0).any() for p in prices]
    assert counts.tolist() == [len(calibration) - (200 if used else 100) for used in cheapest]
    found = certify(fit, holed, **at(0.7))
    assert found.sample_size == counts[prices.tolist().index(found.price)]
    assert len(set(counts.tolist())) == 2


def test_which_rows_count_does_not_depend_on_what_came_out(fit, calibration):
    hidden = np.random.default_rng(0).random(calibration.outcome.shape) < 0.2
    prices = price_grid(fit)
    used = [
        np.isfinite(Routed.provable(with_outcome(calibration, np.where(hidden, np.nan, y)), prices, BEST).quality)
        for y in (calibration.outcome, 1 - calibration.outcome)
    ]
    assert (used[0] == used[1]).all()
    assert 0 < used[0].mean() < 1


def test_a_model_nobody_observed_counts_as_wrong_wherever_it_is_chosen(fit, calibration):
    outcome = calibration.outcome.copy()
    outcome[:, 1] = np.nan
    worst = np.nan_to_num(outcome)
    found = [certify(fit, with_outcome(calibration, each), **at(0.8)) for each in (outcome, worst)]
    assert found[0].certified
    assert found[0].to_dict() == found[1].to_dict()
    assert found[0].price > certify(fit, calibration, **at(0.8)).price


def test_a_best_model_nobody_observed_counts_as_right_everywhere(fit, calibration):
    outcome = calibration.outcome.copy()
    outcome[:, BEST] = np.nan
    known = Routed.provable(with_outcome(calibration, outcome), price_grid(fit), BEST)
    assert (known.yardstick == 1).all()
    assert known.quality[:, 0].tolist() == Routed.provable(calibration, price_grid(fit), BEST).quality[:, 0].tolist()


# ---- odd input


def flat(n, quality, cost, outcome):
    shape = (n, len(quality))
    return Evidence(*(np.broadcast_to(np.asarray(each, dtype=float), shape) for each in (quality, cost, outcome, cost)))


ODD = {
    "no rows": flat(0, [0.5, 0.9], [1, 2], [1, 1]),
    "one row": flat(1, [0.5, 0.9], [1, 2], [1, 1]),
    "two rows": flat(2, [0.5, 0.9], [1, 2], [0, 1]),
    "one model": flat(150, [0.9], [1], [1]),
    "all right": flat(150, [0.5, 0.9], [1, 2], [1, 1]),
    "all wrong": flat(150, [0.5, 0.9], [1, 2], [0, 0]),
    "nothing observed": flat(150, [0.5, 0.9], [1, 2], [np.nan, np.nan]),
    "best not observed": flat(150, [0.5, 0.9], [1, 2], [1, np.nan]),
    "free": flat(150, [0.5, 0.9], [0, 0], [0, 1]),
    "one free": flat(150, [0.5, 0.9], [0, 1], [1, 1]),
    "huge costs": flat(150, [0.5, 0.9], [1e200, 3e200], [1, 1]),
    "tiny costs": flat(150, [0.5, 0.9], [1e-200, 3e-200], [1, 1]),
    "same forecasts": flat(150, [0.5, 0.5], [1, 1], [1, 1]),
    "cheapest is best": flat(150, [0.9, 0.5], [1, 2], [1, 1]),
    "hardly better": flat(150, [0.5, 0.5 + 1e-16], [1e300, 2e300], [1, 1]),
}
SURE = {"all right", "one model", "one free", "huge costs", "tiny costs", "same forecasts", "cheapest is best", "free",
        "hardly better"}  # fmt: skip


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", ODD)
def test_odd_input_gets_a_plain_answer(name, bound):
    part = ODD[name]
    best = part.quality.shape[1] - 1
    for floor, against in ((0.9, best), (1.0, best), (0.9, None), (0.0, best), (0.005, None)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = certify(part, part, best=against, floor=floor, confidence=0.95, bound=bound)
        if found.certified:
            assert math.isfinite(found.price)
            assert found.price > 0
            assert floor <= found.lower_bound <= 2
            assert math.isnan(found.largest_floor)
        else:
            assert math.isnan(found.price)
            assert math.isnan(found.largest_floor) or 0 < found.largest_floor < floor
        assert found.message.isprintable()
        assert "nan" not in found.message
        if (floor, against) == (0.9, best):
            assert found.certified == (name in SURE)
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["floor"] == floor


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"floor": 1.2}, "floor: 1.2; give"),
        ({"floor": math.nan}, "floor: nan; give"),
        ({"confidence": 1.0}, "confidence: 1.0; give"),
        ({"confidence": 0}, "confidence: 0; give"),
        ({"bound": "hoeffding"}, r"bound: 'hoeffding'; give one of \['wsr', 'clt', 'crossfit'\]"),
        ({"best": 4}, "best: 4 is no column of 4 models"),
    ],
)
def test_what_cannot_be_asked_is_named_with_its_value_and_the_fix(fit, calibration, asked, message):
    with pytest.raises(ConfigError, match=message):
        certify(fit, calibration, **at(0.9) | asked)


def test_evidence_that_does_not_fit_together_is_refused(fit):
    with pytest.raises(ConfigError, match="calibration: 2 models, the fit part has 4"):
        certify(fit, ODD["one row"], **at(0.9))
    ones = np.ones((3, 2))
    with pytest.raises(ConfigError, match=r"outcome: shape \(3,\)"):
        Evidence(ones, ones, np.ones(3), ones)
    with pytest.raises(ConfigError, match="quality: a forecast is NaN"):
        Evidence(ones * np.nan, ones, ones, ones)
    with pytest.raises(ConfigError, match=r"outcome: 1\.5 is not within 0\.\.1"):
        Evidence(ones, ones, ones * 1.5, ones)


# ---- the answer


def test_a_guarantee_survives_json(fit, calibration):
    for floor in (0.9, 0.999):
        found = certify(fit, calibration, **at(floor), relative_to="large")
        back = Guarantee.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
        assert repr(back) == repr(found)
        assert back.to_dict() == found.to_dict()
        assert len(repr(found)) < 140
        assert "of large" in repr(found)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_whatever_the_tables_the_answer_keeps_its_own_rules(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    m = data.draw(st.integers(1, 5))

    def part(n):
        quality, cost = rng.random((n, m)).round(1), rng.random((n, m)).round(1)
        outcome = np.where(rng.random((n, m)) < 0.2, np.nan, rng.random((n, m)).round(1))
        return Evidence(quality, cost, outcome, np.where(rng.random((n, m)) < 0.5, np.nan, cost))

    fit, calibration = part(data.draw(st.integers(0, 40))), part(data.draw(st.integers(0, 150)))
    best = data.draw(st.none() | st.integers(0, m - 1))
    floor, confidence = data.draw(st.floats(0, 1)), data.draw(st.floats(0.3, 0.99))
    for bound in BOUNDS:
        found = certify(fit, calibration, best=best, floor=floor, confidence=confidence, bound=bound)
        assert found.certified == math.isfinite(found.price) == math.isfinite(found.lower_bound)
        assert found.sample_size <= len(calibration) + (len(fit) if bound == "crossfit" else 0)
        if found.certified:
            assert found.price in price_grid(fit)
            assert found.lower_bound >= floor - 1e-9
