"""The SQLite file of a feedback log: made, checked, written by one thread, read beside it, let go of while forking."""

import functools
import hashlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from eccos_integrations.errors import ArtifactError, ConfigError, EccosError

APPLICATION = 0x4543434F  # "ECCO", where an SQLite file says whose it is
VERSION = 1
BUSY_S = 30.0  # how long other processes may hold the file

SCHEMA = (
    "CREATE TABLE secret (key BLOB NOT NULL)",
    """CREATE TABLE decision (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, time REAL NOT NULL, model TEXT,
        quality REAL, cost_usd REAL, input_tokens REAL, output_tokens REAL, policy TEXT, reason TEXT NOT NULL,
        query BLOB NOT NULL, text BLOB, conversation BLOB)""",
    "CREATE INDEX decision_time ON decision (time)",
    """CREATE TABLE usage (number INTEGER PRIMARY KEY, decision INTEGER NOT NULL REFERENCES decision ON DELETE CASCADE,
        time REAL NOT NULL, model TEXT NOT NULL, outcome TEXT NOT NULL, input_tokens REAL, output_tokens REAL,
        cached_tokens REAL, cost_usd REAL, latency_s REAL)""",
    "CREATE INDEX usage_decision ON usage (decision)",
    """CREATE TABLE label (number INTEGER PRIMARY KEY, decision INTEGER NOT NULL REFERENCES decision ON DELETE CASCADE,
        time REAL NOT NULL, quality REAL NOT NULL, source TEXT NOT NULL)""",
    "CREATE INDEX label_decision ON label (decision)",
)

Job = Callable[[sqlite3.Connection], int]  # rows written


class LogFile:
    """The SQLite file: jobs from any thread, committed in groups by one; reads beside them; closed while forking."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._closed = False
        self._connection: sqlite3.Connection | None = None
        self.start()
        with _forking:
            _files.add(self)
        with self._using:
            self._opened()

    def start(self) -> None:
        """Take up work: at first, and in a child process, where neither threads nor locks of the parent live on."""
        self._jobs: list[tuple[Job, Future[int]]] = []
        self._writer: threading.Thread | None = None
        # Taken in this order: one export at a time, the connection, the list of jobs.
        self._locks = self._exporting, self._using, self._queueing = [threading.Lock() for _ in range(3)]

    def submit(self, job: Job) -> Future[int]:
        """Queue a job; its future is done when it is on disk. What is queued is written, whoever stops waiting."""
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()
        with self._queueing:
            self._check_open()
            if self._writer is None:
                writer = threading.Thread(target=self._write, name="eccos-feedback")
                writer.start()
                self._writer = writer
            self._jobs.append((job, future))
        return future

    def _write(self) -> None:
        """Commit what is queued, all in one transaction, and tell who waits, until nothing is."""
        while True:
            with self._using:
                with self._queueing:
                    jobs, self._jobs = self._jobs, []
                    if not jobs:
                        self._writer = None
                        return
                results = self._commit([job for job, _ in jobs])
            for (_, future), result in zip(jobs, results, strict=True):
                if isinstance(result, EccosError):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _commit(self, jobs: list[Job]) -> list[int | EccosError]:
        try:
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
            results = [_result(job, connection) for job in jobs]
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  # nobody must wait for ever
            self._drop()
            return [_failure(self.path, error) for _ in jobs]
        return results

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read by while others write; in memory there is one for all."""
        self._check_open()
        try:
            if self.path is None:
                with self._using:
                    yield self._opened()
            else:
                with self._exporting, closing(_connect(self.path)) as connection:
                    yield connection
        except sqlite3.Error as error:
            raise _failure(self.path, error) from None

    def checkpoint(self) -> None:
        """Carry the write-ahead log over, so that what was deleted is in neither file."""
        with self._using, suppress(sqlite3.Error):  # busy: the next one does it
            self._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Write what is queued, then disconnect. Again is fine."""
        with self._queueing:
            self._closed = True
            writer = self._writer
        if writer is not None:
            writer.join()
        self.pause()
        if self._connection is not None:  # in memory
            self._connection.close()
            self._connection = None
        self.resume()

    def pause(self) -> None:
        """Hold still, without a connection to the file."""
        for lock in self._locks:
            lock.acquire()
        if self.path is not None:
            self._drop()

    def resume(self) -> None:
        """Go on."""
        for lock in self._locks:
            lock.release()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _connect(self.path)
        return self._connection

    def _drop(self) -> None:
        """Undo what is not committed. A connection to a file goes too: whatever ails it, the next one starts afresh."""
        if self._connection is None:
            return
        with suppress(sqlite3.Error):
            self._connection.rollback()
        if self.path is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("the feedback log is closed; make a new one")


# SQLite loses its locks on a file whose connection is carried across a fork: a child must inherit none.
_files: WeakSet[LogFile] = WeakSet()
_paused: list[LogFile] = []
_forking = threading.Lock()


def _before_fork() -> None:
    _forking.acquire()
    _paused.extend(_files)
    for file in _paused:
        file.pause()


def _after_fork(go_on: Callable[[LogFile], None]) -> None:
    for file in _paused:
        go_on(file)
    _paused.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=functools.partial(_after_fork, LogFile.resume),
        after_in_child=functools.partial(_after_fork, LogFile.start),
    )


def secret(connection: sqlite3.Connection) -> bytes:
    """The key that digests in this file are made with."""
    (key,) = connection.execute("SELECT key FROM secret").fetchone()
    return bytes(key)


def digest(key: bytes, kind: str, text: str) -> bytes:
    """What stands for a text: equal for equal ones, of one kind and in one file."""
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), key=key, person=kind.encode(), digest_size=16
    ).digest()


def _connect(path: Path | None) -> sqlite3.Connection:
    """A connection to a feedback log, which is made where nothing is."""
    if path is not None:
        _check_header(path)
    connection = None
    try:
        connection = sqlite3.connect(":memory:" if path is None else path, BUSY_S, isolation_level=None,
                                     check_same_thread=False)  # fmt: skip
        for pragma in ("synchronous = FULL", "fullfsync = ON", "secure_delete = ON", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
            for statement in (*SCHEMA, f"PRAGMA application_id = {APPLICATION}", f"PRAGMA user_version = {VERSION}"):
                connection.execute(statement)
            connection.execute("INSERT INTO secret VALUES (?)", (secrets.token_bytes(32),))
        connection.execute("COMMIT")
        # Only now: a file that is made in one transaction of the old kind says in its first page what it is.
        connection.execute("PRAGMA journal_mode = WAL")
        application, version = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        _check_version(path, application, version)
        secret(connection)
    except (sqlite3.Error, EccosError) as error:
        if connection is not None:
            connection.close()
        raise _failure(path, error) from None
    return connection


def _check_header(path: Path) -> None:
    """Refuse a file of another kind without opening it as a database, which could change it; make a missing one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        with suppress(OSError):  # SQLite says why
            path.touch(0o600)  # texts may be inside; SQLite gives its files beside it the same mode
        return
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be opened ({error.strerror}); check the path") from None
    if header:
        ours = len(header) == 100 and header.startswith(b"SQLite format 3\0")
        _check_version(path, int.from_bytes(header[68:72]) if ours else 0, int.from_bytes(header[60:64]))


def _check_version(path: Path | None, application: int, version: int) -> None:
    if application != APPLICATION:
        raise ArtifactError(f"{path} is not a feedback log, or damaged; give another path")
    if version > VERSION:
        raise ArtifactError(f"{path}: a feedback log of format {version}, this version knows up to {VERSION}; upgrade "
                            "eccos-integrations")  # fmt: skip


def _failure(path: Path | None, error: Exception) -> EccosError:
    """What happened, as an error of ours; a new one for everybody who waits."""
    if isinstance(error, EccosError):
        return type(error)(*error.args)
    name, where = getattr(error, "sqlite_errorname", type(error).__name__), path or "the log in memory"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return ArtifactError(f"{where} is damaged; move it, its -wal and its -shm file away and a new log begins")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
        return ArtifactError(f"{where}: another program has held it for {BUSY_S:g} s; end that program, or try again")
    what = f"{name}: {error}" if isinstance(error, sqlite3.Error) else name  # only SQLite's words never quote a text
    return ArtifactError(f"{where}: cannot be read or written ({what}); check free space and the folder's permissions")


def _result(job: Job, connection: sqlite3.Connection) -> int | EccosError:
    """What a job returns, or why it alone cannot be done."""
    try:
        return job(connection)
    except ConfigError as error:
        return error
