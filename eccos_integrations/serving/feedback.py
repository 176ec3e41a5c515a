"""The feedback log: what was decided, what each attempt really used, how good the answers were. One SQLite file.

A row is acknowledged once it is on disk: what a method has returned from survives kill -9 and, as far as the disk keeps
its word, a power cut. One thread per log commits whatever waits in one transaction, so many callers share one sync.
"""

import asyncio
import functools
import hashlib
import json
import math
import re
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Self

import numpy as np

from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import MEASURES, OutcomeTable
from eccos_integrations.plan import Decision
from eccos_integrations.policy import Policy
from eccos_integrations.serving import export
from eccos_integrations.serving.sqlite import LogFile, digest, secret

BITE = 1_000  # decisions deleted in one transaction, so that writers wait for no more
OLDEST = "DELETE FROM decision WHERE number IN (SELECT number FROM decision WHERE time < ? ORDER BY time LIMIT ?)"

P = ParamSpec("P")


def _waiting(
    method: Callable[Concatenate["FeedbackLog", P], Future[int]],
) -> Callable[Concatenate["FeedbackLog", P], None]:
    """The method as one that waits for the disk."""

    @functools.wraps(method)
    def waiting(self: "FeedbackLog", /, *args: P.args, **kwargs: P.kwargs) -> None:
        method(self, *args, **kwargs).result()

    return waiting


def _awaiting(
    method: Callable[Concatenate["FeedbackLog", P], Future[int]],
) -> Callable[Concatenate["FeedbackLog", P], Coroutine[Any, Any, None]]:
    """The method as its twin for event loops. Cancelled, the row is written all the same."""

    @functools.wraps(method)
    async def awaiting(self: "FeedbackLog", /, *args: P.args, **kwargs: P.kwargs) -> None:
        await asyncio.wrap_future(method(self, *args, **kwargs))

    return awaiting


class FeedbackLog:
    """An append-only log of decisions, real usage and quality labels, for many threads and processes at once.

    Without `store_text` no prompt is in the file: equal queries have equal digests, keyed with a secret of that file.
    Whoever holds the file can test a guess at a prompt, no more. Conversations are digests always. Methods wait for
    the disk; twins named with an `a` in front let the event loop run meanwhile. Pickled, a log is its path.

    Args:
        path: The file, on a local disk; made if missing, for its owner alone. None: in memory, gone when closed.
        store_text: Keep the texts of queries too.
        retention_days: Decisions older than this are deleted, with all that came of them: at once by `prune`, within
            the hour while others are logged. None: kept.

    Raises:
        ArtifactError: The file is something else, damaged, newer, or cannot be written. It is left as it is.
        ConfigError: An argument is out of range.

    Example:
        >>> log = FeedbackLog(None, store_text=True)
        >>> log.decided(Decision("d1", "small", 0.8, 1e-4, ("small",), "routed", floor_met=True), "What is 2 + 2?")
        >>> log.used("d1", "small", output_tokens=7, cost_usd=9e-5, latency_s=0.4)
        >>> log.graded("d1", quality=1.0, source="thumb")
        >>> log.to_table()
        OutcomeTable(1 queries x 1 models, 100% observed)
        >>> log.close()
    """

    def __init__(
        self, path: str | Path | None, *, store_text: bool = False, retention_days: float | None = None
    ) -> None:
        if retention_days is not None and not _number("retention_days", retention_days):
            raise ConfigError(f"retention_days: {retention_days!r} keeps nothing; give days above 0, or None")
        self.path = None if path is None else Path(path).absolute()
        self.store_text = store_text
        self.retention_days = retention_days
        self._prune_at = 0.0
        self._file = LogFile(self.path)

    def __repr__(self) -> str:
        path = None if self.path is None else str(self.path)
        return f"FeedbackLog({path!r}, store_text={self.store_text}, retention_days={self.retention_days})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "store_text": self.store_text, "retention_days": self.retention_days}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a copy opens the file itself

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit_decided(
        self,
        decision: Decision,
        query: str,
        *,
        policy: Policy | None = None,
        conversation: str | None = None,
        input_tokens: float | None = None,
        output_tokens: float | None = None,
    ) -> Future[int]:
        """Log a decision. One whose id is there already stays as it was.

        Args:
            decision: With its forecast.
            query: Its text; a digest is kept, the text only with `store_text`.
            policy: That it was made under; a fingerprint is kept.
            conversation: That it belongs to; a digest is kept.
            input_tokens: Forecast.
            output_tokens: Forecast.

        Raises:
            ConfigError: An argument is not what it should be, or the log is closed.
            ArtifactError: The file cannot be written; nothing was logged.
        """
        if not isinstance(query, str) or not isinstance(conversation, str | None):
            raise ConfigError("query, conversation: give strings")
        forecast = {"quality": decision.quality, "cost_usd": decision.cost_usd,
                    "input_tokens": input_tokens, "output_tokens": output_tokens}  # fmt: skip
        columns = {
            "id": _word("decision.id", decision.id),
            "time": time.time(),
            "model": None if decision.model is None else _word("decision.model", decision.model),
            "reason": _word("decision.reason", decision.reason, least=0),
            "policy": None if policy is None else _fingerprint(policy),
            **{name: _number(name, value, MEASURES[name]) for name, value in forecast.items()},
        }

        def job(connection: sqlite3.Connection) -> int:
            key = secret(connection)
            digests = {
                "query": digest(key, "query", query),
                "text": query.encode("utf-8", "surrogatepass") if self.store_text else None,
                "conversation": None if conversation is None else digest(key, "conversation", conversation),
            }
            if time.monotonic() >= self._prune_at:
                self._prune_at = time.monotonic() + (3600 if self._prune_bite(connection) < BITE else 1)
            return _insert(connection, "decision", {**columns, **digests}, "ON CONFLICT (id) DO NOTHING")

        return self._file.submit(job)

    def submit_used(
        self,
        decision_id: str,
        model: str,
        *,
        outcome: str = "ok",
        input_tokens: float | None = None,
        output_tokens: float | None = None,
        cached_tokens: float | None = None,
        cost_usd: float | None = None,
        latency_s: float | None = None,
    ) -> Future[int]:
        """Log what one attempt really used.

        Args:
            decision_id: The decision it belongs to.
            model: That was asked.
            outcome: `"ok"`, `"cancelled"`, or the name of the error's class, not its message: that may quote a prompt.
            input_tokens: All of them, the cached too.
            output_tokens: Of the answer.
            cached_tokens: Those of the input that the provider had cached.
            cost_usd: Billed.
            latency_s: From the request to the last token.

        Raises:
            ConfigError: No such decision, an argument is not what it should be, or the log is closed.
            ArtifactError: The file cannot be written; nothing was logged.
        """
        if not re.fullmatch(r"[A-Za-z_][\w.]{0,99}", outcome if isinstance(outcome, str) else "", re.ASCII):
            raise ConfigError("outcome: give 'ok', 'cancelled', or the name of the error's class")
        usage = {"input_tokens": input_tokens, "output_tokens": output_tokens, "cached_tokens": cached_tokens,
                 "cost_usd": cost_usd, "latency_s": latency_s}  # fmt: skip
        numbers = {name: _number(name, value) for name, value in usage.items()}
        return self._came_of(decision_id, "usage", {"model": _word("model", model), "outcome": outcome, **numbers})

    def submit_graded(self, decision_id: str, quality: float, source: str = "") -> Future[int]:
        """Log how good the answer was, in 0..1. Of several labels the last counts.

        Args:
            decision_id: The decision.
            quality: Of its answer.
            source: Who says so, in a word.

        Raises:
            ConfigError: No such decision, an argument is not what it should be, or the log is closed.
            ArtifactError: The file cannot be written; nothing was logged.
        """
        if (known := _number("quality", quality, 1.0)) is None:
            raise ConfigError("quality: nothing was observed; give a number in 0..1")
        return self._came_of(decision_id, "label", {"quality": known, "source": _word("source", source, least=0)})

    decided, adecided = _waiting(submit_decided), _awaiting(submit_decided)
    used, aused = _waiting(submit_used), _awaiting(submit_used)
    graded, agraded = _waiting(submit_graded), _awaiting(submit_graded)

    def to_table(
        self, queries: Iterable[str] = (), *, unknown: Literal["raise", "drop", "digest"] = "raise"
    ) -> OutcomeTable:
        """What the models did, one row per distinct query: means over its decisions and the attempts that came out ok.

        A label goes to the model that answered: of the last attempt that came out ok, or the decided one where no
        attempt was logged. Query ids are digests.

        Args:
            queries: Texts you kept elsewhere: what was logged without its text is found by them.
            unknown: Queries whose text is neither stored nor given: `"raise"` an error, `"drop"` them, or let the
                `"digest"` stand for the text, which serves reports of cost and quality and is no use to learn from.

        Raises:
            DataError: Texts are unknown, or nothing was observed.
            ConfigError: An argument is not what it should be, or the log is closed.
            ArtifactError: The file cannot be read.
        """
        return export.to_table(self._file, queries, unknown)

    def prune(self) -> int:
        """Delete the decisions older than `retention_days`, with all that came of them; says how many.

        Raises:
            ConfigError: The log is closed.
            ArtifactError: The file cannot be written.
        """
        pruned = bite = self._file.submit(self._prune_bite).result()
        while bite == BITE:
            bite = self._file.submit(self._prune_bite).result()
            pruned += bite
        if pruned:
            self._file.checkpoint()
        return pruned

    def close(self) -> None:
        """Write what waits and let go of the file. Again is fine."""
        self._file.close()

    async def ato_table(
        self, queries: Iterable[str] = (), *, unknown: Literal["raise", "drop", "digest"] = "raise"
    ) -> OutcomeTable:
        """As `to_table`, in a thread."""
        return await asyncio.to_thread(self.to_table, queries, unknown=unknown)

    async def aprune(self) -> int:
        """As `prune`, in a thread."""
        return await asyncio.to_thread(self.prune)

    async def aclose(self) -> None:
        """As `close`, in a thread."""
        await asyncio.to_thread(self.close)

    def _came_of(self, decision_id: str, table: str, columns: dict[str, Any]) -> Future[int]:
        """Log a row that belongs to a decision."""
        known, columns = _word("decision_id", decision_id), {"time": time.time(), **columns}

        def job(connection: sqlite3.Connection) -> int:
            found = connection.execute("SELECT number FROM decision WHERE id = ?", (known,)).fetchone()
            if found is None:
                raise ConfigError(f"decision_id: {known!r} is not in this log; log it with decided() first, or it was "
                                  "pruned")  # fmt: skip
            return _insert(connection, table, {"decision": found[0], **columns})

        return self._file.submit(job)

    def _prune_bite(self, connection: sqlite3.Connection) -> int:
        if self.retention_days is None:
            return 0
        return connection.execute(OLDEST, (time.time() - 86_400 * self.retention_days, BITE)).rowcount


def _insert(connection: sqlite3.Connection, table: str, columns: dict[str, Any], rest: str = "") -> int:
    marks = ", ".join("?" * len(columns))
    statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) {rest}"  # noqa: S608  # our own names
    return connection.execute(statement, tuple(columns.values())).rowcount


def _fingerprint(policy: Policy) -> str:
    settings = json.dumps(policy.model_dump(mode="json"), sort_keys=True)
    return hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()


def _word(name: str, value: object, least: int = 1) -> str:
    """A short text that UTF-8 can hold; else an error that does not quote it."""
    if isinstance(value, str) and least <= len(value) <= 1000:
        with suppress(UnicodeEncodeError):
            value.encode()
            return value
    raise ConfigError(f"{name}: give a text of {least} to 1,000 letters that UTF-8 can hold")


def _number(name: str, value: Any, most: float = math.inf) -> float | None:
    """A measure; None where it was not observed."""
    if value is None:
        return None
    if isinstance(value, int | float | np.number):
        with suppress(TypeError, OverflowError):  # complex, or larger than any float
            number = float(value)
            if math.isnan(number):
                return None
            if 0 <= number <= most and math.isfinite(number):
                return number
            raise ConfigError(f"{name}: {number:g} is out of range; give at least 0, finite, quality at most 1")
    raise ConfigError(f"{name}: got a {type(value).__name__}; give a number, or None if it was not observed")
