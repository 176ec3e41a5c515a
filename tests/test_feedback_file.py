"""The file of a feedback log keeps every row that was acknowledged, and what is no such file stays as it is."""

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from eccos_integrations import ArtifactError, Decision
from eccos_integrations.serving import sqlite
from eccos_integrations.serving.feedback import FeedbackLog
from tests.contracts.processes import ROOT, run_python

MAKE = """
from eccos_integrations import Decision
from eccos_integrations.serving.feedback import FeedbackLog
def decision(name):
    return Decision(name, "small", 0.5, 0.001, ("small",), "routed", floor_met=True)
"""


def decision(name):
    return Decision(name, "small", 0.5, 0.001, ("small",), "routed", floor_met=True)


def rows(log, table="decision", columns="*"):
    with log._file.reading() as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY number").fetchall()


def ids(log):
    return [name for (name,) in rows(log, columns="id")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "feedback.db"


@pytest.fixture(params=["file", "memory"])
def log(request, path):
    with FeedbackLog(path if request.param == "file" else None, store_text=True) as log:
        yield log


# --- every acknowledged row ---


def test_every_acknowledged_row_survives_kill_9(path):
    code = (
        MAKE
        + """
import os, sys, threading
log = FeedbackLog(sys.argv[1])
def write(thread):
    for number in range(1_000_000):
        name = f"{os.getpid()}-{thread}-{number}"
        log.decided(decision(name), name)
        log.used(name, "small", cost_usd=1)
        os.write(1, (name + "\\n").encode())
for thread in range(4):
    threading.Thread(target=write, args=(thread,)).start()
"""
    )
    acknowledged = []
    for rounds in (1, 40, 80):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            acknowledged += [writer.stdout.readline() for _ in range(rounds)]
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged += [line for line in writer.stdout if line.endswith(b"\n")]
        assert writer.returncode == -signal.SIGKILL
    names = {line.decode().strip() for line in acknowledged}
    assert len(names) >= 121
    with FeedbackLog(path) as log:
        there = ids(log)
        assert len(set(there)) == len(there)
        assert names <= set(there)
        used = {there[number - 1] for (number,) in rows(log, "usage", "decision")}
        assert names <= used
        log.decided(decision("after"), "q")


def test_a_row_is_synced_to_the_disk_before_it_is_acknowledged(path):
    with FeedbackLog(path) as log:
        pragmas = ("journal_mode", "synchronous", "fullfsync")
        assert [log._file._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas] == ["wal", 2, 1]


def test_four_processes_of_four_threads_lose_no_row_and_write_none_twice(path):
    code = (
        MAKE
        + """
import sys, threading
def write(thread):
    for number in range(15):
        name = f"{sys.argv[2]}-{thread}-{number}"
        log.decided(decision(name), name)
        log.used(name, "small", cost_usd=1)
        log.graded(name, 1.0)
with FeedbackLog(sys.argv[1]) as log:
    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(k)], cwd=ROOT) for k in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    expected = sorted(f"{p}-{t}-{n}" for p in range(4) for t in range(4) for n in range(15))
    with FeedbackLog(path) as log:
        assert sorted(ids(log)) == expected
        for table in ("usage", "label"):
            assert sorted(number for (number,) in rows(log, table, "decision")) == list(range(1, 241))


def test_many_may_open_a_new_log_at_once(path):
    start = threading.Barrier(8)
    logs, errors = [], []

    def opening():
        start.wait()
        try:
            logs.append(FeedbackLog(path))
        except ArtifactError as error:
            errors.append(error)

    threads = [threading.Thread(target=opening) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == []
    for number, log in enumerate(logs):
        log.decided(decision(str(number)), "same")
    assert len({query for (query,) in rows(logs[0], columns="query")}) == 1, "one secret, not one per opener"
    [log.close() for log in logs]


def test_a_forked_child_logs_beside_its_parent(path):
    log = FeedbackLog(path)
    log.decided(decision("before"), "q")
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            log.decided(decision(f"parent-{number}"), "q")
            number += 1

    def child(name):
        for number in range(20):
            log.decided(decision(f"{name}-{number}"), "q")
        log.close()

    busy = threading.Thread(target=write)
    busy.start()
    children = [multiprocessing.get_context("fork").Process(target=child, args=(f"child-{k}",)) for k in range(3)]
    for process in children:
        process.start()
    for process in children:
        process.join()
    stop.set()
    busy.join()
    assert [process.exitcode for process in children] == [0, 0, 0]
    log.used("child-2-19", "small")
    there = ids(log)
    log.close()
    assert {f"child-{k}-{n}" for k in range(3) for n in range(20)} <= set(there)
    assert "parent-0" in there
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_forked_log_in_memory_is_a_copy():
    log = FeedbackLog(None)
    log.decided(decision("before"), "q")

    def child():
        log.decided(decision("child"), "q")
        os._exit(0 if ids(log) == ["before", "child"] else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert ids(log) == ["before"]
    log.close()


# --- files that cannot be used ---


def refused(folder, path, contents, error, match):
    before = contents(folder)
    with pytest.raises(error, match=match):
        FeedbackLog(path)
    assert contents(folder) == before, "a refused open changes nothing"


@pytest.mark.parametrize("bytes_", [b"notes of mine\n", b"SQLite format 3\0", os.urandom(5000)])
def test_a_file_of_something_else_is_refused_untouched(tmp_path, contents, bytes_):
    (tmp_path / "notes").write_bytes(bytes_)
    refused(tmp_path, tmp_path / "notes", contents, ArtifactError, "not a feedback log, or damaged; give another path")


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_of_something_else_is_refused_untouched(tmp_path, contents, mode):
    connection = sqlite3.connect(tmp_path / "theirs.db", isolation_level=None)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.execute("CREATE TABLE decision (id)")
    refused(tmp_path, tmp_path / "theirs.db", contents, ArtifactError, "not a feedback log")
    connection.close()


def test_a_log_of_a_newer_version_is_refused_untouched(tmp_path, contents, path):
    with FeedbackLog(path) as log:
        log.decided(decision("d"), "q")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA user_version = {sqlite.VERSION + 1}")
    connection.close()
    refused(tmp_path, path, contents, ArtifactError, f"format {sqlite.VERSION + 1}.*upgrade eccos-integrations")


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_log_is_refused_untouched(tmp_path, contents, path, damage):
    with FeedbackLog(path, store_text=True) as log:
        for name in range(20):
            log.decided(decision(str(name)), "q" * 2000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else whole[:100] + os.urandom(len(whole) - 100))
    refused(tmp_path, path, contents, ArtifactError, "damaged; move it, its -wal and its -shm file away")


@pytest.mark.parametrize("taken", ["folder", "below a file"])
def test_a_path_that_can_hold_no_file_is_refused(tmp_path, contents, taken):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path if taken == "folder" else tmp_path / "file" / "feedback.db"
    refused(tmp_path, path, contents, ArtifactError, "cannot be opened.*check the path")


def test_a_folder_that_must_not_be_written_is_told():
    code = (
        MAKE
        + """
import os, sys
if os.geteuid() == 0:  # whom no permission stops
    os.seteuid(65534)
for name in ("new.db", "old.db"):
    try:
        FeedbackLog(sys.argv[1] + "/" + name)
    except Exception as error:
        print(type(error).__name__, error)
"""
    )
    with tempfile.TemporaryDirectory() as folder:
        FeedbackLog(Path(folder) / "old.db").close()
        before = (Path(folder) / "old.db").read_bytes()
        (Path(folder) / "old.db").chmod(0o444)
        Path(folder).chmod(0o555)
        told = run_python(code, folder).splitlines()
        assert (Path(folder) / "old.db").read_bytes() == before
        Path(folder).chmod(0o755)
    assert len(told) == 2
    for line, name in zip(told, ("new.db", "old.db"), strict=True):
        assert line.startswith(f"ArtifactError {folder}/{name}: cannot be read or written"), line
        assert "permissions" in line


def test_a_full_disk_is_told_and_keeps_what_was_acknowledged(path):
    code = (
        MAKE
        + """
import resource, sys
log = FeedbackLog(sys.argv[1], store_text=True)
log.decided(decision("first"), "q")
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    log.decided(decision("huge"), "secret " * 100_000)
except Exception as error:
    print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.decided(decision("later"), "q")
log.close()
"""
    )
    told = run_python(code, path)
    assert told.startswith("ArtifactError"), told
    assert "check free space" in told
    assert "secret" not in told
    with FeedbackLog(path) as log:
        assert ids(log) == ["first", "later"]


def test_sqlites_own_limit_is_told_to_everybody_who_waits_and_passes(log):
    log._file._connection.execute("PRAGMA max_page_count = 20")

    async def much():
        texts = [str(k) * 20_000 for k in range(8)]
        return await asyncio.gather(*(log.adecided(decision(text[0]), text) for text in texts), return_exceptions=True)

    errors = [error for error in asyncio.run(much()) if error is not None]
    assert errors
    assert all(isinstance(error, ArtifactError) and "SQLITE_FULL" in str(error) for error in errors)
    assert len(ids(log)) == 8 - len(errors)
    log._file._opened().execute("PRAGMA max_page_count = 1000000")
    log.decided(decision("later"), "q")


def test_a_file_that_is_held_for_too_long_is_told_and_the_log_recovers(path, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_S", 0.05)
    with FeedbackLog(path) as log:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(ArtifactError, match=r"another program has held it for 0\.05 s"):
            log.decided(decision("lost"), "q")
        holder.execute("COMMIT")
        holder.close()
        log.decided(decision("kept"), "q")
        assert ids(log) == ["kept"]


def test_a_folder_that_is_missing_is_made(tmp_path):
    with FeedbackLog(tmp_path / "new" / "folder" / "feedback.db") as log:
        log.decided(decision("d"), "q")
        assert ids(log) == ["d"]


def test_a_new_file_and_those_beside_it_are_for_their_owner_alone(path):
    before = os.umask(0)
    try:
        with FeedbackLog(path) as log:
            log.decided(decision("d"), "q")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["feedback.db", "feedback.db-wal", "feedback.db-shm"], 0o600)


def test_the_mode_of_a_file_that_is_there_stays_as_it_is(path):
    path.touch()
    path.chmod(0o640)
    with FeedbackLog(path) as log:
        log.decided(decision("d"), "q")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
