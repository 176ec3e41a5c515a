"""A window's assignment never uses more than is free, and leaves nobody out who fits."""

import itertools
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations.serving.greedy import place


@st.composite
def windows(draw, most_queries=12, most_models=4, with_tokens=True):
    n, m = draw(st.integers(0, most_queries)), draw(st.integers(1, most_models))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cost = rng.normal(size=(n, m))
    cost[rng.random((n, m)) < draw(st.sampled_from([0.0, 0.3, 0.7]))] = np.inf
    tokens = rng.integers(1, 10, (n, m)).astype(float) if with_tokens else np.zeros((n, m))
    slots = rng.choice([0.0, 1.0, 2.0, 5.0, np.inf], m)
    tokens_free = rng.choice([0.0, 7.0, 20.0, np.inf], m) if with_tokens else np.full(m, np.inf)
    return cost, tokens, slots, tokens_free


def left(tokens, slots, tokens_free, chosen):
    placed = np.flatnonzero(chosen >= 0)
    m = len(slots)
    used = np.bincount(chosen[placed], tokens[placed, chosen[placed]], minlength=m)
    return slots - np.bincount(chosen[placed], minlength=m), tokens_free - used


@settings(deadline=None, max_examples=300)
@given(windows())
def test_never_more_than_is_free_and_nobody_left_out_who_fits(window):
    cost, tokens, slots, tokens_free = window
    chosen = place(cost, tokens, slots, tokens_free)
    slots_left, tokens_left = left(tokens, slots, tokens_free, chosen)
    assert (slots_left >= 0).all()
    assert (tokens_left >= 0).all()
    for i, j in enumerate(chosen):
        if j >= 0:
            assert np.isfinite(cost[i, j])
        else:
            assert not (np.isfinite(cost[i]) & (slots_left >= 1) & (tokens[i] <= tokens_left)).any()


@settings(deadline=None, max_examples=150)
@given(windows(most_queries=6, most_models=3, with_tokens=False))
def test_where_a_query_takes_one_slot_at_least_half_of_what_can_be_placed_is(window):
    cost, tokens, slots, tokens_free = window
    n, m = cost.shape
    best = 0
    for choice in itertools.product(range(-1, m), repeat=n):
        taken = [j for j in choice if j >= 0]
        if all(choice[i] < 0 or np.isfinite(cost[i, choice[i]]) for i in range(n)) and all(
            taken.count(j) <= slots[j] for j in range(m)
        ):
            best = max(best, len(taken))
    assert 2 * (place(cost, tokens, slots, tokens_free) >= 0).sum() >= best


@settings(deadline=None, max_examples=50)
@given(windows())
def test_where_there_is_room_for_all_everyone_gets_the_cheapest(window):
    cost, tokens, *_ = window
    m = cost.shape[1]
    able = np.isfinite(cost).any(axis=1)
    chosen = place(cost, tokens, np.full(m, np.inf), np.full(m, np.inf))
    assert np.array_equal(chosen, np.where(able, cost.argmin(axis=1), -1))


@settings(deadline=None, max_examples=50)
@given(windows())
def test_the_arguments_are_left_alone(window):
    before = [array.copy() for array in window]
    place(*window)
    assert all(np.array_equal(a, b) for a, b in zip(before, window, strict=True))


def test_the_last_slot_goes_to_who_has_no_other():
    cost = np.array([[1.0, 2.0, np.inf], [np.inf, 1.0, 2.0], [1.0, np.inf, np.inf]])
    chosen = place(cost, np.zeros((3, 3)), np.ones(3), np.full(3, np.inf))
    assert chosen.tolist() == [1, 2, 0]


def test_where_slots_are_few_those_who_wait_longest_come_first():
    cost = np.array([[1.0], [-9.0], [1.0]])
    assert place(cost, np.zeros((3, 1)), np.array([2.0]), np.array([np.inf])).tolist() == [0, 0, -1]


def test_the_slot_goes_to_whom_the_detour_costs_most():
    cost = np.array([[0.0, 1.0], [0.0, 5.0]])
    assert place(cost, np.zeros((2, 2)), np.array([1.0, 9.0]), np.full(2, np.inf)).tolist() == [1, 0]


def test_two_hundred_queries_on_ten_models_take_less_than_five_milliseconds():
    rng = np.random.default_rng(0)
    cost, tokens = rng.random((200, 10)), rng.integers(100, 2000, (200, 10)).astype(float)
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        place(cost, tokens, np.full(10, 22.0), np.full(10, 25_000.0))
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.005  # the least: what it takes when nothing else runs
