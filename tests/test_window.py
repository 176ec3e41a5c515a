"""Callers are collected for a moment, never for a count."""

import copy
import pickle
import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import NoCapacityError, Policy
from eccos_integrations.serving.window import MOST, Arrivals, BackpressureError, Request, Usage

TIMES = st.floats(0, 100, allow_nan=False)


def test_a_window_closes_when_its_time_is_over():
    assert Arrivals(0.010).closes_s(5.0, 5.0095, 7) == 5.010


def test_a_window_closes_sooner_when_nobody_else_comes():
    assert Arrivals(0.010).closes_s(5.0, 5.001, 2) == 5.003


def test_a_full_window_closes_at_once():
    assert Arrivals(0.010).closes_s(5.0, 5.001, MOST) == 5.001


def test_nobody_is_no_window():
    assert Arrivals(0.0).closes_s(0.0, 0.0, 0) == float("inf")


@settings(deadline=None, max_examples=100)
@given(TIMES, TIMES, st.integers(1, 2 * MOST), st.floats(0, 10))
def test_no_window_is_open_longer_than_it_may(first, later, count, window_s):
    closes = Arrivals(window_s).closes_s(first, first + later, count)
    assert closes <= max(first + window_s, first + later)


def test_without_a_window_whoever_is_there_is_taken():
    arrivals = Arrivals(0.0)
    arrivals.put("a")
    arrivals.put("b")
    assert arrivals.take(0.0) == ["a", "b"]
    assert len(arrivals) == 0


def test_a_lone_caller_does_not_wait_for_the_whole_window():
    arrivals = Arrivals(60.0)
    arrivals._first_s = arrivals._last_s = 0.0
    arrivals.put("a")
    arrivals._last_s -= 12.0  # a fifth of the window without anybody
    assert arrivals.take(60.0) == ["a"]


def test_more_than_a_window_holds_is_taken_in_windows_in_order():
    arrivals = Arrivals(60.0)
    for k in range(2 * MOST):
        arrivals.put(k)
    assert arrivals.take(60.0) + arrivals.take(60.0) == list(range(2 * MOST))


def test_a_poke_ends_the_wait_and_leaves_the_window_open():
    arrivals = Arrivals(60.0)
    arrivals.put("a")
    arrivals.poke()
    assert arrivals.take(60.0) == []
    assert len(arrivals) == 1


def test_a_poke_wakes_who_waits_already():
    arrivals = Arrivals(60.0)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(arrivals.take(60.0)))
    thread.start()
    arrivals.poke()
    thread.join(10)
    assert taken == [[]]


def test_nobody_in_time_is_an_empty_window():
    start = time.monotonic()
    assert Arrivals(0.010).take(0.005) == []
    assert time.monotonic() - start >= 0.005


def test_backpressure_says_when_to_try_again_also_as_a_copy():
    error = BackpressureError("max_waiting: 7 queries wait already", 1.5)
    for one in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert isinstance(one, NoCapacityError)
        assert str(one) == "max_waiting: 7 queries wait already; try again in 1.5 s"
        assert one.retry_s == 1.5


def test_no_text_is_shown_by_who_waits():
    assert "xylophone" not in repr(Request("xylophone", Policy(), 0.0, 1.0, conversation="xylophone"))


def test_the_total_of_several_calls_is_known_only_where_each_says_what_it_used():
    assert Usage.total([Usage(1, 2, 1, 0.5), Usage(3, 4, 0, 0.25)]) == Usage(4, 6, 1, 0.75)
    assert Usage.total([Usage(1, 2, cost_usd=0.5), Usage(3, 4)]) == Usage(4, 6)
    assert Usage.total([Usage(1, 2), None]) is None
    assert Usage.total([]) is None
