"""Failing models rest, and come back; what an error says of its model."""

import json
from email.utils import formatdate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError
from eccos_integrations.serving.health import (
    BASE_S,
    FAILURES,
    MOST_RETRY_S,
    MOST_S,
    UNDER_WAY,
    Backoff,
    Fault,
    Health,
    fault,
)


class ApiError(Exception):
    def __init__(self, status=None, *, message="", code=None, headers=None):
        super().__init__(message)
        self.status_code, self.code, self.headers = status, code, headers


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    return Health(["a", "b"], clock, seed=1)


def fail(health, times=1, kind="failing", retry_s=None):
    for _ in range(times):
        health.failed("a", health.begin("a"), Fault(kind, retry_s))


@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 500, 502, 503, 504, 529])
def test_what_a_provider_has_wrong_is_failing(status):
    assert fault(ApiError(status)).kind == "failing"


@pytest.mark.parametrize("status", [400, 405, 413, 422])
def test_what_the_request_has_wrong_is_passed_on(status):
    assert fault(ApiError(status)) is None


@pytest.mark.parametrize("error", [ValueError("x"), ConfigError("x"), KeyboardInterrupt(), GeneratorExit()])
def test_what_says_nothing_of_a_model_is_passed_on(error):
    assert fault(error) is None


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError(), json.JSONDecodeError("x", "", 0)])
def test_timeouts_lost_connections_and_broken_answers_are_failing(error):
    assert fault(error).kind == "failing"


def test_a_broken_answer_is_failing_though_its_response_had_a_sound_status():
    error = json.JSONDecodeError("x", "", 0)
    error.response = ApiError(200)
    assert fault(error).kind == "failing"


def test_clients_of_other_libraries_are_known_by_the_names_of_their_classes():
    transport = type("TransportError", (Exception,), {})
    assert fault(type("ReadError", (transport,), {})()).kind == "failing"
    assert fault(type("RateLimitError", (Exception,), {})()).kind == "throttled"
    assert fault(type("ContextWindowExceededError", (Exception,), {})()).kind == "too_long"
    assert fault(type("ContentPolicyViolationError", (Exception,), {"status_code": 500})()) is None


@pytest.mark.parametrize("status", [None, 400, 413])
def test_a_context_that_is_too_long_is_known_by_its_code_or_its_words(status):
    assert fault(ApiError(status, code="context_length_exceeded")).kind == "too_long"
    assert fault(ApiError(status, message="This model's maximum context length is 8192 tokens")).kind == "too_long"


@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_content_policy_is_passed_on_whatever_the_status(status):
    assert fault(ApiError(status, code="content_policy_violation")) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"Retry-After": formatdate(1_000_030, usegmt=True)}, 30.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "1e9"}, MOST_RETRY_S),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_milliseconds_or_a_date(headers, seconds):
    assert fault(ApiError(429, headers=headers), now=lambda: 1_000_000).retry_s == seconds


def test_retry_after_is_found_on_the_response_too():
    error = Exception()
    error.response = ApiError(429, headers={"retry-after": "3"})
    assert fault(error) == Fault("throttled", 3.0, billed=False)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10_000), st.integers(0, 100))
def test_back_off_grows_and_has_a_most_and_a_jitter(failures, seed):
    most = min(BASE_S * 2.0 ** min(failures - 1, 30), MOST_S)
    assert most / 2 <= Backoff(seed)(failures) <= most


def test_a_throttled_model_rests_as_long_as_it_said_and_then_takes_all(health, clock):
    fail(health, kind="throttled", retry_s=7.0)
    assert health.room("a") == 0
    assert health.rest_s("a") == 7.0
    assert health.room("b") == float("inf")
    clock.now += 6.99
    assert health.room("a") == 0
    clock.now += 0.01
    assert health.room("a") == float("inf")


def test_of_several_retry_afters_the_longest_counts(health, clock):
    begun = [health.begin("a"), health.begin("a")]
    health.failed("a", begun[0], Fault("throttled", 9.0))
    health.failed("a", begun[1], Fault("throttled", 2.0))
    assert health.rest_s("a") == 9.0


def test_a_throttled_model_that_does_not_say_how_long_rests_too(health):
    fail(health, kind="throttled")
    assert BASE_S / 2 <= health.rest_s("a") <= BASE_S


def test_a_lone_failure_does_not_close_a_model(health):
    fail(health, FAILURES - 1)
    assert health.room("a") == float("inf")
    health.succeeded("a", health.begin("a"))
    fail(health, FAILURES - 1)
    assert health.room("a") == float("inf")


def test_failures_in_a_row_open_the_circuit_and_after_a_rest_one_call_probes(health, clock):
    fail(health, FAILURES)
    assert health.room("a") == 0
    clock.now += health.rest_s("a")
    assert health.room("a") == 1
    health.begin("a")
    assert health.room("a") == 0


def test_a_probe_that_goes_well_lets_all_in(health, clock):
    fail(health, FAILURES)
    clock.now += MOST_S
    health.succeeded("a", health.begin("a"))
    assert health.room("a") == float("inf")


def test_a_probe_that_fails_makes_the_rest_longer(health, clock):
    fail(health, FAILURES)
    rests = []
    for _ in range(4):
        rests.append(health.rest_s("a"))
        clock.now += MOST_S
        fail(health)
    assert all(BASE_S * 2**n / 2 <= rest <= BASE_S * 2**n for n, rest in enumerate(rests))


def test_a_probe_that_was_cancelled_makes_room_for_another(health, clock):
    fail(health, FAILURES)
    clock.now += MOST_S
    health.abandoned("a", health.begin("a"))
    assert health.room("a") == 1


def test_calls_from_before_the_circuit_opened_neither_close_it_nor_lengthen_its_rest(health):
    begun = [health.begin("a") for _ in range(30)]
    fail(health, FAILURES + 30 // UNDER_WAY)
    rest_s = health.rest_s("a")
    health.succeeded("a", begun[0])
    for generation in begun[1:]:
        health.failed("a", generation, Fault("failing"))
    assert health.rest_s("a") == rest_s
    assert health.room("a") == 0


def test_of_calls_begun_together_some_may_fail_first(health):
    begun = [health.begin("a") for _ in range(200)]
    for generation in begun[:20]:
        health.failed("a", generation, Fault("failing"))
    assert health.room("a") == float("inf")
    for generation in begun[20:]:
        health.succeeded("a", generation)
    assert health.room("a") == float("inf")


def test_where_all_of_many_fail_it_does_not_take_all_of_them(health):
    begun = [health.begin("a") for _ in range(200)]
    for generation in begun[:40]:
        health.failed("a", generation, Fault("failing"))
    assert health.room("a") == 0


def test_a_context_that_was_too_long_says_nothing_of_health(health):
    fail(health, 10, kind="too_long")
    assert health.room("a") == float("inf")
