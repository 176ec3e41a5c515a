import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations.errors import ConfigError
from eccos_integrations.guarantee import DriftTest
from eccos_integrations.guarantee.drift import BETS


def residuals(rng, n, drift=0.0):
    """Right or wrong, minus a forecast that was right before the drift."""
    forecast = rng.uniform(0.6, 0.95, n)
    return (rng.random(n) < np.clip(forecast + drift, 0, 1)) - forecast


def first_alarm(test, stream):
    return next((n for n, residual in enumerate(stream, 1) if test.update(residual)), math.inf)


@pytest.mark.parametrize("edge", [0.03, -0.03])
def test_streams_at_the_edge_of_the_margin_seldom_raise_a_false_alarm(edge):
    rng = np.random.default_rng(0)
    alarms = [first_alarm(DriftTest(0.0, 0.03), residuals(rng, 2000, edge)) < math.inf for _ in range(300)]
    assert np.mean(alarms) <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 300)


def test_a_larger_alpha_is_kept_too():
    rng = np.random.default_rng(1)
    alarms = [first_alarm(DriftTest(0.0, 0.0, alpha=0.2), residuals(rng, 500)) < math.inf for _ in range(300)]
    assert 0 < np.mean(alarms) <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / 300)


@pytest.mark.parametrize(("drift", "within"), [(0.05, 3500), (0.1, 600), (0.2, 150)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_quality_that_falls_or_rises_is_noticed(drift, within, sign):
    rng = np.random.default_rng(2)
    forecast = np.full(6000, 0.75)
    alarms = []
    for _ in range(15):
        outcome = rng.random(6000) < forecast + sign * drift
        alarms.append(first_alarm(DriftTest(0.0, 0.02), outcome - forecast))
    assert np.median(alarms) <= within


def test_a_drift_after_many_good_days_is_still_noticed_soon():
    rng = np.random.default_rng(3)
    delays = []
    for _ in range(10):
        test = DriftTest(0.0, 0.02)
        assert first_alarm(test, residuals(rng, 3000)) == math.inf
        delays.append(first_alarm(test, residuals(rng, 3000, -0.2)))
    assert np.median(delays) <= 300


def test_the_evidence_after_one_residual_is_that_of_a_hand_reckoned_gamble():
    test = DriftTest(bias=0.1, margin=0.05)
    test.update(0.4)
    bets = BETS / 1.15  # a residual may lie up to 1 + 0.1 from the bias, and 0.05 beyond the margin's near end
    waiting = 2**-0.25
    above, below = 1 + bets * (0.3 - 0.05), 1 + bets * (-0.3 - 0.05)
    assert test.evidence == pytest.approx(waiting + (1 - waiting) * (above.mean() + below.mean()) / 2)


@settings(deadline=None, max_examples=60)
@given(
    bias=st.floats(-0.5, 0.5),
    margin=st.floats(0, 0.4),
    where=st.floats(-1, 1),
    widths=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    before=st.lists(st.floats(-1, 1), max_size=20),
)
def test_no_residuals_within_the_margin_win_on_average(bias, margin, where, widths, before):
    mean = bias + where * margin
    low, high = max(mean - widths[0], -1.0), min(mean + widths[1], 1.0)
    chance_of_high = (mean - low) / (high - low)
    start = DriftTest(bias, margin, alpha=1e-9)
    for residual in before:
        start.update(residual)
    after = []
    for residual in (low, high):
        test = DriftTest.restore(start.state())
        test.update(residual)
        after.append(test.evidence)
        assert test.evidence >= 0
    assert (1 - chance_of_high) * after[0] + chance_of_high * after[1] <= start.evidence * (1 + 1e-9) or start.drifted


def test_once_drifted_it_stays_so():
    test = DriftTest(0.0, 0.02)
    first = first_alarm(test, [-0.8] * 100)
    assert first < 30
    evidence = test.evidence
    assert all(test.update(0.0) for _ in range(500))
    assert (test.drifted, test.evidence, test.n) == (True, evidence, first + 500)


def test_a_bias_known_beforehand_is_no_drift():
    rng = np.random.default_rng(4)
    stream = np.clip(residuals(rng, 2000) * 0.5 - 0.2, -1, 1)
    assert first_alarm(DriftTest(-0.2, 0.02), stream) == math.inf
    assert first_alarm(DriftTest(0.0, 0.02), stream) < 200


@pytest.mark.parametrize("n", [0, 1, 700])
def test_a_saved_test_goes_on_as_if_it_had_never_stopped(n):
    rng = np.random.default_rng(5)
    test = DriftTest(0.01, 0.02)
    for residual in residuals(rng, n):
        test.update(residual)
    back = DriftTest.restore(json.loads(json.dumps(test.state(), allow_nan=False)))
    assert repr(back) == repr(test)
    for residual in residuals(rng, 500, -0.15):
        assert back.update(residual) == test.update(residual)
        assert back.evidence == test.evidence
    assert test.drifted == back.drifted


def test_residuals_of_calibration_give_their_mean_and_two_standard_errors():
    seen = residuals(np.random.default_rng(6), 900)
    test = DriftTest.from_residuals([*seen, math.nan])
    assert test.bias == pytest.approx(seen.mean())
    assert test.margin == pytest.approx(2 * seen.std() / 30, rel=0.01)
    assert test.alpha == 0.01


def test_the_fewer_residuals_the_wider_the_margin():
    seen = residuals(np.random.default_rng(7), 2000)
    margins = [DriftTest.from_residuals(seen[:n]).margin for n in (0, 1, 10, 100, 2000)]
    assert margins[0] == 1
    assert margins == sorted(margins, reverse=True)
    assert DriftTest.from_residuals([0.0] * 5).margin > 0.1  # that five agree proves little


def test_few_false_alarms_where_bias_and_margin_come_from_calibration():
    rng = np.random.default_rng(8)
    alarms = [
        first_alarm(DriftTest.from_residuals(residuals(rng, 500)), residuals(rng, 2000)) < math.inf for _ in range(100)
    ]
    assert sum(alarms) <= 4


@pytest.mark.parametrize("residual", [math.nan, 1.01, -2, math.inf])
def test_a_residual_out_of_range_is_refused_and_changes_nothing(residual):
    test = DriftTest(0.0, 0.02)
    with pytest.raises(ConfigError, match=r"residual: .*; give outcome minus forecast"):
        test.update(residual)
    assert (test.n, test.evidence) == (0, 1.0)
    with pytest.raises(ConfigError, match=r"residuals: .*; give outcome minus forecast"):
        DriftTest.from_residuals([residual if residual == residual else 7.0])  # noqa: PLR0124


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"bias": 1.5}, "bias: 1.5; give a number from -1 to 1"),
        ({"margin": -0.1}, "margin: -0.1; give a number from 0 to 1"),
        ({"margin": math.nan}, "margin: nan"),
        ({"alpha": 0}, "alpha: 0; give a number between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_named(asked, message):
    with pytest.raises(ConfigError, match=message):
        DriftTest(**{"bias": 0.0, "margin": 0.02} | asked)
