"""The feedback log keeps what it is told, keeps no prompt unless told to, and forgets what is too old."""

import asyncio
import gc
import math
import pickle
import sqlite3
import time

import numpy as np
import pytest

from eccos_integrations import ArtifactError, ConfigError, Decision, Policy
from eccos_integrations.outcomes import MEASURES
from eccos_integrations.serving import feedback
from eccos_integrations.serving.feedback import FeedbackLog

PROMPT = "the okapi's passphrase is xylophone"


def decision(name, model="small", quality=0.5, cost_usd=0.001):
    return Decision(name, model, quality, cost_usd, (model,), "routed at the current prices", floor_met=True)


def rows(log, table="decision", columns="*"):
    with log._file.reading() as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY number").fetchall()


def ids(log):
    return [name for (name,) in rows(log, columns="id")]


def on_disk(path):
    """Every byte of the log: file, write-ahead log and all."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(path.name + "*")))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "feedback.db"


@pytest.fixture(params=["file", "memory"])
def log(request, path):
    with FeedbackLog(path if request.param == "file" else None, store_text=True) as log:
        yield log


# --- rows ---


def test_the_forecast_of_a_decision_is_kept(log):
    log.decided(decision("d", "small", 0.25, 0.5), "q", input_tokens=np.int64(5), output_tokens=np.float32(9))
    log.decided(Decision("none", None, math.nan, math.nan, (), "no model has room for it", floor_met=False), "q")
    columns = "id, model, quality, cost_usd, input_tokens, output_tokens, reason"
    assert rows(log, columns=columns) == [
        ("d", "small", 0.25, 0.5, 5.0, 9.0, "routed at the current prices"),
        ("none", None, None, None, None, None, "no model has room for it"),
    ]


def test_a_decision_logged_again_stays_as_it_was(log):
    log.decided(decision("d", "small"), "first")
    log.decided(decision("d", "large"), "second")
    assert rows(log, columns="id, model") == [("d", "small")]


def test_policies_are_told_apart_by_fingerprint(log):
    alike = [Policy(capacity={"a": 1, "b": 2}), Policy(capacity={"b": 2, "a": 1})]
    for number, policy in enumerate([None, *alike, Policy(min_quality=0.5)]):
        log.decided(decision(str(number)), "q", policy=policy)
    none, one, two, other = [fingerprint for (fingerprint,) in rows(log, columns="policy")]
    assert none is None
    assert one == two != other


def test_feedback_on_an_unknown_decision_names_it_and_harms_no_row_beside_it(log):
    async def mixed():
        log.decided(decision("d"), "q")
        names = ["d", "gone", "d", "gone", "d"]
        return await asyncio.gather(*(log.aused(name, "small") for name in names), return_exceptions=True)

    results = asyncio.run(mixed())
    assert [result for result in results if result is None] == [None] * 3
    assert all(isinstance(error, ConfigError) and "'gone'" in str(error) for error in results if error is not None)
    assert len(rows(log, "usage")) == 3


def test_whatever_fails_is_told_without_a_text_undone_and_passes(log, monkeypatch):
    def out_of_memory(connection, table, columns, rest=""):
        connection.execute("INSERT INTO label (decision, time, quality, source) SELECT number, 0, 0, '' FROM decision")
        raise MemoryError(PROMPT)

    log.decided(decision("d"), "q")
    with monkeypatch.context() as patched:
        patched.setattr(feedback, "_insert", out_of_memory)
        with pytest.raises(ArtifactError, match="MemoryError") as raised:
            log.graded("d", 1.0)
    assert PROMPT not in str(raised.value)
    log.graded("d", 0.5)
    assert rows(log, "label", "quality") == [(0.5,)]


# --- prompts ---


@pytest.mark.parametrize("closed", [False, True])
def test_without_store_text_no_byte_of_a_prompt_is_in_the_file(path, closed):
    log = FeedbackLog(path)
    log.decided(decision("d"), PROMPT, conversation="conversation-4711")
    log.used("d", "small", cost_usd=1)
    log.graded("d", 1.0)
    if closed:
        log.close()
    held = on_disk(path)
    assert b"routed at the current prices" in held
    for part in ("okapi", "passphrase", "xylophone", "4711"):
        assert part.encode() not in held, part
    log.close()


def test_with_store_text_the_prompt_is_in_the_file(path):
    with FeedbackLog(path, store_text=True) as log:
        log.decided(decision("d"), PROMPT)
        assert PROMPT.encode() in on_disk(path)


def test_equal_queries_have_equal_digests_in_one_file_and_others_in_another(tmp_path):
    digests = []
    for name, queries in [("one.db", "aab"), ("one.db", "a"), ("two.db", "a")]:
        with FeedbackLog(tmp_path / name) as log:
            for query in queries:
                log.decided(decision(f"{len(digests)}{len(rows(log))}"), query, conversation=query)
            digests.append(rows(log, columns="query, conversation"))
    (a, conversation), (again, _), (b, _) = digests[0]
    assert a == again == digests[1][3][0] != b
    assert conversation != a, "a conversation is not told from a query by its digest"
    assert digests[2][0][0] != a


def test_no_text_is_in_its_repr_and_the_path_is(path):
    with FeedbackLog(path, store_text=True) as log:
        log.decided(decision("d"), PROMPT)
        assert repr(log) == f"FeedbackLog({str(path)!r}, store_text=True, retention_days=None)"


@pytest.mark.parametrize(
    ("field", "call"),
    {
        "query": lambda log: log.decided(decision("x"), [PROMPT]),
        "conversation": lambda log: log.decided(decision("x"), "q", conversation=[PROMPT]),
        "decision.id": lambda log: log.decided(decision(PROMPT + "\ud800"), "q"),
        "decision.model": lambda log: log.decided(decision("x", PROMPT * 100), "q"),
        "input_tokens": lambda log: log.decided(decision("x"), "q", input_tokens=PROMPT),
        "quality": lambda log: log.decided(decision("x", quality=1.5), "q"),
        "outcome": lambda log: log.used("d", "small", outcome=f"BadRequest: {PROMPT}"),
        "model": lambda log: log.used("d", PROMPT + "\udfff"),
        "model ": lambda log: log.used("d", ""),
        "cost_usd": lambda log: log.used("d", "small", cost_usd=-1),
        "latency_s": lambda log: log.used("d", "small", latency_s=math.inf),
        "cached_tokens": lambda log: log.used("d", "small", cached_tokens=10**400),
        "quality ": lambda log: log.graded("d", math.nan),
        "source": lambda log: log.graded("d", 1.0, source=PROMPT * 100),
        "unknown": lambda log: log.to_table(unknown="guess"),
        "queries": lambda log: log.to_table(PROMPT),
    }.items(),
)
def test_a_wrong_argument_is_named_not_quoted_and_nothing_is_logged(log, field, call):
    log.decided(decision("d"), "q")
    with pytest.raises(ConfigError) as raised:
        call(log)
    assert field.strip() in str(raised.value)
    assert PROMPT not in str(raised.value)
    assert (len(ids(log)), rows(log, "usage"), rows(log, "label")) == (1, [], [])


# --- open and closed ---


def test_what_was_logged_is_there_after_reopening(path):
    with FeedbackLog(path) as log:
        log.decided(decision("d"), "q")
    with FeedbackLog(str(path)) as log:
        log.used("d", "small", cost_usd=1)
        assert ids(log) == ["d"]


def test_a_pickled_log_writes_to_the_same_file(path):
    with FeedbackLog(path, store_text=True, retention_days=7) as log, pickle.loads(pickle.dumps(log)) as copy:
        assert repr(copy) == repr(log)
        copy.decided(decision("d"), "q")
        assert ids(log) == ["d"]


def test_a_pickled_log_in_memory_comes_back_empty():
    with FeedbackLog(None) as log:
        log.decided(decision("d"), "q")
        with pickle.loads(pickle.dumps(log)) as copy:
            assert (ids(log), ids(copy)) == (["d"], [])


def test_a_closed_log_says_so_and_closes_twice(log):
    log.close()
    log.close()
    for call in (lambda: log.decided(decision("d"), "q"), log.to_table, log.prune, lambda: log.graded("d", 1.0)):
        with pytest.raises(ConfigError, match="closed"):
            call()


def test_what_was_queued_when_it_was_closed_is_written(path):
    async def closing():
        log = FeedbackLog(path)
        queued = [asyncio.ensure_future(log.adecided(decision(str(k)), "q")) for k in range(50)]
        await asyncio.sleep(0)
        await log.aclose()
        await asyncio.gather(*queued)

    asyncio.run(closing())
    with FeedbackLog(path) as log:
        assert len(ids(log)) == 50


# --- event loops ---


async def test_the_async_twins_do_what_the_methods_do(log):
    await log.adecided(decision("d"), "q", policy=Policy(), conversation="c", input_tokens=1, output_tokens=2)
    await log.aused("d", "small", outcome="ok", input_tokens=1, output_tokens=2, cost_usd=3, latency_s=4)
    await log.agraded("d", 0.5, source="judge")
    table = await log.ato_table()
    assert [getattr(table, name).item() for name in MEASURES] == [0.5, 3, 1, 2, 4]
    assert await log.aprune() == 0
    await log.aclose()


async def test_a_row_is_written_though_its_caller_was_cancelled(log):
    log.decided(decision("d"), "q")
    waiting = asyncio.ensure_future(log.aused("d", "small", outcome="cancelled"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await log.agraded("d", 1.0)
    assert rows(log, "usage", "outcome") == [("cancelled",)]


async def test_the_loop_turns_while_another_program_holds_the_file(path):
    log = FeedbackLog(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    waiting = [asyncio.ensure_future(log.adecided(decision(str(k)), "q")) for k in range(100)]
    for _ in range(1_000):
        await asyncio.sleep(0)
    assert not any(future.done() for future in waiting), "nothing is acknowledged that is not on disk"
    holder.execute("COMMIT")
    await asyncio.gather(*waiting)
    assert len(ids(log)) == 100
    holder.close()
    await log.aclose()


@pytest.mark.parametrize("text", [PROMPT, "a megabyte " * 90_000], ids=["short", "long"])
def test_no_callback_of_a_thousand_rows_computes_for_ten_milliseconds(path, monkeypatch, text):
    """That none waits for the disk is the test above; here the clock is the thread's, which no neighbour slows."""
    run, took = asyncio.Handle._run, []

    def timed(handle):
        before = time.thread_time()
        run(handle)
        took.append(time.thread_time() - before)

    async def logging(caller):
        for k in range(5):
            await log.adecided(decision(f"{caller}-{k}"), text)
            await log.aused(f"{caller}-{k}", "small", cost_usd=1)

    async def thousand():
        await asyncio.gather(*(logging(caller) for caller in range(100)))

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    gc.disable()  # what it costs is that of everything this process has loaded
    try:
        with FeedbackLog(path) as log:
            asyncio.run(thousand())
            assert len(ids(log)) == 500
    finally:
        gc.enable()
    assert len(took) > 1000
    assert max(took) < 0.01


# --- retention ---


def age(path, names, days):
    with sqlite3.connect(path) as connection:
        for name in names:
            connection.execute("UPDATE decision SET time = time - ? WHERE id = ?", (days * 86_400, name))
    connection.close()


@pytest.mark.parametrize("days", [0, -1, math.nan, "30"])
def test_a_retention_that_keeps_nothing_is_refused(days):
    with pytest.raises(ConfigError, match="retention_days"):
        FeedbackLog(None, retention_days=days)


def test_pruning_deletes_what_is_older_with_all_that_came_of_it(path):
    with FeedbackLog(path, store_text=True, retention_days=30) as log:
        for name, text in [("old", PROMPT), ("new", "another")]:
            log.decided(decision(name), text)
            log.used(name, "small", cost_usd=1)
            log.graded(name, 1.0)
        age(path, ["old"], days=30.1)
        age(path, ["new"], days=29.9)
        assert log.prune() == 1
        assert log.prune() == 0
        assert (ids(log), len(rows(log, "usage")), len(rows(log, "label"))) == (["new"], 1, 1)
        assert b"xylophone" not in on_disk(path), "what is pruned is gone from the disk"
        with pytest.raises(ConfigError, match="pruned"):
            log.graded("old", 1.0)


def test_without_retention_nothing_is_pruned(path):
    with FeedbackLog(path) as log:
        log.decided(decision("d"), "q")
        age(path, ["d"], days=10_000)
        assert log.prune() == 0
        assert ids(log) == ["d"]


def test_pruning_goes_bite_by_bite(path, monkeypatch):
    monkeypatch.setattr(feedback, "BITE", 3)
    with FeedbackLog(path, retention_days=1) as log:
        names = [str(k) for k in range(10)]
        for name in names:
            log.decided(decision(name), "q")
        age(path, names[:9], days=2)
        assert log.prune() == 9
        assert ids(log) == ["9"]


def test_a_log_that_is_reopened_prunes_while_it_logs(path):
    with FeedbackLog(path) as log:
        log.decided(decision("old"), "q")
    age(path, ["old"], days=2)
    with FeedbackLog(path, retention_days=1) as log:
        log.decided(decision("new"), "q")
        assert ids(log) == ["new"]
