"""Replay as a provider: limits that refuse and are counted, faults from a seed, and a log that can be reckoned up."""

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError, EccosError, Model, ModelPool, OutcomeTable
from eccos_integrations.replay import (
    CutError,
    Entry,
    Faults,
    MalformedError,
    ReplayError,
    ReplayProvider,
    load_sample_references,
    replay,
)
from eccos_integrations.replay.log import violations
from eccos_integrations.serving.health import fault


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def table_of(tokens=(10, 20), latency_s=None):
    queries = [f"question {letter}" for letter in "abcd"]
    shape = (4, 1)
    return OutcomeTable(
        list("abcd"), queries, ["m"], np.ones(shape), np.full(shape, 0.001), np.full(shape, tokens[0]),
        np.full(shape, tokens[1]), None if latency_s is None else np.full(shape, latency_s),
    )  # fmt: skip


def provider_of(clock=time.monotonic, faults=None, speed=math.inf, table=None, **limits):
    return ReplayProvider(table or table_of(), ModelPool([Model(name="m", **limits)]), faults=faults, speed=speed,
                          clock=clock)  # fmt: skip


def outcome(provider, prompt="question a", **arguments):
    try:
        return provider.call("m", prompt, **arguments).finish_reason
    except (ReplayError, MalformedError, CutError) as error:
        return getattr(error, "status_code", type(error).__name__)


def test_answers_tokens_and_cost_are_those_of_the_table(sample):
    references = load_sample_references()
    provider = ReplayProvider(sample, references=references, speed=math.inf)
    models = replay(sample, references)
    for name in sample.models:
        for query in sample.queries[:20]:
            answer, recorded = provider.call(name, query), models[name](query)
            assert (answer.text, answer.cost_usd) == (recorded.text, recorded.cost_usd)
            assert (answer.input_tokens, answer.output_tokens) == (recorded.input_tokens, recorded.output_tokens)
    entry = provider.log[-1]
    assert (entry.model, entry.status) == (sample.models[-1], 200)
    assert (entry.input_tokens, entry.output_tokens) == (answer.input_tokens, answer.output_tokens)
    assert entry.began <= entry.ended


def test_an_unknown_model_or_question_is_an_error_and_no_request():
    provider = provider_of()
    with pytest.raises(ConfigError, match="there is no model 'x'"):
        provider.call("x", "question a")
    with pytest.raises(ConfigError, match="no record") as unknown:
        provider.call("m", "something secret")
    assert "secret" not in str(unknown.value)
    assert provider.log == []


def test_a_pool_of_other_models_and_a_speed_of_nothing_are_errors():
    with pytest.raises(ConfigError, match="the table has no model 'x'"):
        ReplayProvider(table_of(), ModelPool([Model(name="x")]))
    for speed in (0, -1, math.nan):
        with pytest.raises(ConfigError, match="speed"):
            ReplayProvider(table_of(), speed=speed)


@pytest.mark.parametrize("cap", [1, 7, 19])
def test_the_cap_cuts_the_answer_its_tokens_and_its_time(cap):
    provider = provider_of()
    answer, whole = provider.call("m", "question a", max_tokens=cap), provider.call("m", "question a", max_tokens=20)
    assert (answer.output_tokens, answer.finish_reason, whole.finish_reason) == (cap, "length", "stop")
    assert provider.log[0].output_tokens == cap
    assert whole.text.startswith(answer.text)
    assert len(answer.text) < len(whole.text)
    assert answer.latency_s < whole.latency_s
    assert math.isnan(answer.cost_usd)


def test_a_cap_below_one_is_an_error():
    with pytest.raises(ConfigError, match="max_tokens=0"):
        provider_of().call("m", "question a", max_tokens=0)


@pytest.mark.parametrize(
    ("limits", "recorded_s", "expected"),
    [
        ({"base_latency_s": 0.5, "output_tokens_per_s": 10}, None, (0.5, 2.5)),
        ({}, None, (0.2, 0.4)),
        ({"base_latency_s": 0.5}, 3.0, (0.5, 3.0)),
        ({"base_latency_s": 0.5}, 0.1, (0.1, 0.1)),
    ],
)
def test_latency_is_as_recorded_or_as_the_pool_says_or_a_common_one(limits, recorded_s, expected):
    answer = provider_of(table=table_of(latency_s=recorded_s), **limits).recorded("m", "question a")
    assert (answer.base_latency_s, answer.latency_s) == pytest.approx(expected)


async def test_a_call_takes_its_latency_over_the_speed_however_it_is_made():
    provider = provider_of(speed=20, base_latency_s=1, output_tokens_per_s=20)  # 2 s
    provider.call("m", "question a")
    await provider.acall("m", "question a")
    list(provider.stream("m", "question a"))
    _ = [chunk async for chunk in provider.astream("m", "question a")]
    assert all(entry.ended - entry.began >= 0.099 for entry in provider.log)


async def test_the_chunks_make_up_the_answer_and_the_last_one_has_its_usage():
    provider = provider_of()
    answer = provider.call("m", "question a")
    for chunks in (
        list(provider.stream("m", "question a")),
        [chunk async for chunk in provider.astream("m", "question a")],
    ):
        assert "".join(chunk.text for chunk in chunks) == answer.text
        assert len(chunks) > 2
        assert [chunk.answer for chunk in chunks] == [None] * (len(chunks) - 1) + [answer]


def test_a_minute_has_no_more_requests_than_the_limit():
    clock = Clock()
    provider = provider_of(clock, requests_per_minute=2)
    assert [outcome(provider), outcome(provider)] == ["stop", "stop"]
    clock.now = 130.0
    with pytest.raises(ReplayError) as refused:
        provider.call("m", "question a")
    assert refused.value.status_code == 429
    assert refused.value.retry_after == pytest.approx(30)
    assert refused.value.headers["retry-after"] == "30"
    assert fault(refused.value).kind == "throttled"
    assert fault(refused.value).retry_s == pytest.approx(30)
    clock.now = 159.9
    assert outcome(provider) == 429
    clock.now = 160.0
    assert outcome(provider) == "stop"
    assert provider.violations() == {"m": {"requests_per_minute": 2}}


def test_a_minute_has_no_more_tokens_than_the_limit():
    clock = Clock()
    provider = provider_of(clock, tokens_per_minute=75)  # a call has 30
    assert outcome(provider) == "stop"
    clock.now = 110.0
    assert [outcome(provider), outcome(provider), outcome(provider, max_tokens=5)] == ["stop", 429, "length"]
    with pytest.raises(ReplayError) as refused:
        provider.call("m", "question a")
    assert refused.value.retry_after == pytest.approx(50)
    clock.now = 160.0
    assert outcome(provider) == "stop"
    assert provider.violations() == {"m": {"tokens_per_minute": 2}}


def test_a_call_larger_than_a_minute_is_always_refused():
    provider = provider_of(tokens_per_minute=29)
    with pytest.raises(ReplayError) as refused:
        provider.call("m", "question a")
    assert refused.value.retry_after == 60


async def test_no_more_calls_are_in_flight_than_the_limit():
    provider = provider_of(speed=4, max_concurrency=3)  # 0.1 s each
    results = await asyncio.gather(*(provider.acall("m", "question a") for _ in range(5)), return_exceptions=True)
    assert [getattr(result, "status_code", 200) for result in results] == [200, 200, 200, 429, 429]
    assert provider.violations() == {"m": {"max_concurrency": 2}}
    await provider.acall("m", "question b")
    assert provider.violations() == {"m": {"max_concurrency": 2}}


async def test_a_cancelled_call_and_a_stream_left_early_are_abandoned_and_free_their_place():
    provider = provider_of(speed=0.001, max_concurrency=1)
    task = asyncio.create_task(provider.acall("m", "question a", request_id="x"))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    provider.speed = math.inf
    stream = provider.stream("m", "question a", request_id="x")
    next(stream)
    stream.close()
    assert [entry.status for entry in provider.log] == [499, 499]
    assert provider.answered == {}
    provider.call("m", "question a", request_id="x")
    assert provider.answered == {"x": 1}
    assert provider.violations() == {}


def test_threads_together_get_no_more_than_the_limits():
    provider = provider_of(requests_per_minute=500, max_concurrency=8)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: outcome(provider, f"question {'abcd'[i % 4]}"), range(2000)))
    assert (results.count("stop"), results.count(429)) == (500, 1500)
    assert sum(entry.status == 429 for entry in provider.log) == 1500
    assert provider.violations() == {"m": {"requests_per_minute": 1500}}


@pytest.mark.parametrize(
    ("kind", "expected", "status"),
    [("error", 500, 500), ("hang", 504, 504), ("malformed", "MalformedError", 200), ("cut", "CutError", 200)],
)
def test_each_fault_fails_as_its_kind_does_and_answers_nothing(kind, expected, status):
    provider = provider_of(faults=Faults(**{f"{kind}_rate": 1}, hang_s=0.01))
    with pytest.raises(EccosError) as failed:
        provider.call("m", "question a", request_id="x")
    assert getattr(failed.value, "status_code", type(failed.value).__name__) == expected
    assert fault(failed.value).kind == "failing"
    with pytest.raises(type(failed.value)):
        list(provider.stream("m", "question a", request_id="x"))
    assert [(entry.status, entry.fault) for entry in provider.log] == [(status, kind)] * 2
    assert provider.answered == {}


def test_a_cut_stream_ends_after_something_was_said_and_before_the_end():
    provider = provider_of(faults=Faults(cut_rate=1))
    stream = provider.stream("m", "question a")
    assert [next(stream).text, next(stream).text] == ["a", " right"]  # of "a right answer"
    with pytest.raises(CutError):
        next(stream)


def test_a_slow_call_takes_longer_and_is_answered():
    provider = provider_of(faults=Faults(slow_rate=1, slow_factor=5), speed=20)  # 0.4 s of latency
    provider.call("m", "question a", request_id="x")
    assert provider.log[0].ended - provider.log[0].began >= 0.099
    assert provider.answered == {"x": 1}


def test_faults_repeat_with_the_seed_in_whatever_order_calls_come():
    faults = Faults(error_rate=0.2, malformed_rate=0.2, cut_rate=0.2, seed=3)
    asked = [f"question {letter}" for letter in "abcd"] * 10

    def drawn(faults, prompts):
        provider = provider_of(faults=faults)
        results = [(prompt, outcome(provider, prompt)) for prompt in prompts]
        return {prompt: [result for asked, result in results if asked == prompt] for prompt in set(prompts)}

    assert drawn(faults, asked) == drawn(faults, sorted(asked))
    assert drawn(faults, asked) != drawn(faults.model_copy(update={"seed": 4}), asked)
    assert {500, "stop"} < set(drawn(faults, asked)["question a"])  # a second try may go well


def test_faults_come_as_often_as_their_rates_say():
    faults = Faults(error_rate=0.1, hang_rate=0.2, slow_rate=0.05, malformed_rate=0.3, cut_rate=0.25)
    kinds = [faults.draw("m", f"prompt {i}", 0) for i in range(5000)]
    for kind, rate in [("error", 0.1), ("hang", 0.2), ("slow", 0.05), ("malformed", 0.3), ("cut", 0.25), (None, 0.1)]:
        assert kinds.count(kind) / 5000 == pytest.approx(rate, abs=0.03)


@pytest.mark.parametrize(
    "wrong", [{"error_rate": 1.1}, {"cut_rate": -0.1}, {"hang_s": -1}, {"error_rate": 0.6, "cut_rate": 0.6}]
)
def test_impossible_faults_are_errors(wrong):
    with pytest.raises(ConfigError, match="Faults"):
        Faults(**wrong)


def in_any_minute(entries, model):
    """How many requests came above each limit, counted one by one."""
    counts = dict.fromkeys(("max_concurrency", "requests_per_minute", "tokens_per_minute"), 0)
    for row, entry in enumerate(entries):
        before = [other for other in entries[:row] if other.status != 429]
        minute = [other for other in before if other.began + 60 > entry.began]
        tokens = sum(other.input_tokens + other.output_tokens for other in [*minute, entry])
        counts["max_concurrency"] += sum(other.followers > row for other in before) + 1 > model.max_concurrency
        counts["requests_per_minute"] += len(minute) + 1 > model.requests_per_minute
        counts["tokens_per_minute"] += tokens > model.tokens_per_minute
    return {limit: count for limit, count in counts.items() if count}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 5.0, 29.0, 60.0]), st.integers(1, 20), st.booleans()), max_size=40),
    st.integers(1, 3), st.integers(1, 6), st.integers(20, 120),
)  # fmt: skip
def test_the_reckoning_agrees_with_what_was_refused_and_with_counting_one_by_one(steps, calls, requests, tokens):
    clock = Clock()
    model = Model(name="m", max_concurrency=calls, requests_per_minute=requests, tokens_per_minute=tokens)
    provider = ReplayProvider(table_of(), ModelPool([model]), clock=clock)
    running, waits_s = [], []
    for pause_s, cap, ends in steps:
        clock.now += pause_s
        if ends and running:
            running.pop(0).__exit__(None, None, None)
        try:
            answer = provider.recorded("m", "question a").within(cap)
            running.append(provider.begin(answer, "question a"))
        except ReplayError as error:
            waits_s.append(error.retry_after)
    assert all(0 < wait_s < 60 + 1e-9 for wait_s in waits_s)
    counted = in_any_minute(provider.log, model)
    assert provider.violations() == ({"m": counted} if counted else {})
    assert any(entry.status == 429 for entry in provider.log) == bool(counted)
    assert max(counted.values(), default=0) <= sum(entry.status == 429 for entry in provider.log)


def test_calls_that_were_let_in_above_a_limit_count_as_violations_too():
    entries = [Entry("m", 100.0 + i, 5, 5, None, 200, "", 110.0, 4) for i in range(4)]
    model = Model(name="m", max_concurrency=2, requests_per_minute=3, tokens_per_minute=15)
    assert violations([model], entries) == {
        "m": {"max_concurrency": 2, "requests_per_minute": 1, "tokens_per_minute": 3}
    }


def test_tokens_that_were_not_recorded_are_counted_roughly():
    provider = ReplayProvider(OutcomeTable(["a"], ["one two three?"], ["m"], [[1]]), speed=math.inf)
    answer = provider.call("m", "one two three?")
    assert (answer.text, answer.input_tokens, answer.output_tokens) == ("a right answer", 4, 3)


def test_a_thread_makes_more_than_a_thousand_calls_a_second(sample):  # ten thousand, on a machine of its own
    pool = ModelPool([Model(name=sample.models[0], max_concurrency=2, requests_per_minute=10**6)])
    provider = ReplayProvider(sample, pool, load_sample_references(), speed=math.inf)
    began = time.perf_counter()
    for _ in range(3):
        for query in sample.queries:
            provider.call(sample.models[0], query)
    assert time.perf_counter() - began < 3
