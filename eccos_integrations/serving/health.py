"""Which models can be asked now: what their errors mean, and how long a failing one is left alone."""

import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

# throttled: too many calls. failing: this model, now. too_long: for this model's context window. None of the others
# would repeat these; every other error they would.
Kind = Literal["throttled", "failing", "too_long"]

FAILING = frozenset({401, 402, 403, 404, 408, 409, 425})  # and 500 up: of this provider, its credentials, its model
TOO_LONG = ("context_length_exceeded", "contextwindowexceeded", "contextoverflow", "maximum context length",
            "prompt is too long", "context window")  # fmt: skip
POLICY = ("content_policy", "contentpolicy", "content_filter", "contentfilter", "responsible_ai")
# In a row, and the circuit opens: a lone failure is the query's affair, which goes elsewhere. Calls under way may yet
# go well, and of those begun together the failures come back first: for every five it takes one more.
FAILURES = 3
UNDER_WAY = 5
BASE_S = 0.5
MOST_S = 60.0
MOST_RETRY_S = 3600.0  # of a Retry-After that is believed


@dataclass(frozen=True)
class Fault:
    """What an error says of the model.

    Attributes:
        kind: `"throttled"`, `"failing"` or `"too_long"`.
        retry_s: When the provider says to come back; None: it did not say.
        billed: Whether the call may have used tokens.
    """

    kind: Kind
    retry_s: float | None = None
    billed: bool = True


def fault(error: BaseException, now: Callable[[], float] | None = None) -> Fault | None:
    """What an error says of its model; None where every model would repeat it, or it is no error of a model.

    Understood by what clients have in common: `status_code` or `status` of the error or of its `response`, its
    `headers`, its `code`, the name of its class. A `retry_after` of the error itself, in seconds, counts too.

    Args:
        error: What a call raised.
        now: Seconds since 1970, for a Retry-After that is a date.

    Example:
        >>> fault(TimeoutError()), fault(ValueError("malformed request"))
        (Fault(kind='failing', retry_s=None, billed=True), None)
    """
    if not isinstance(error, Exception):
        return None
    status, words = _status(error), _words(error)
    if any(word in words for word in POLICY):
        return None
    if status in {None, 400, 413, 422} and any(word in words for word in TOO_LONG):
        return Fault("too_long", billed=False)
    if status == 429 or (status is None and "ratelimit" in words):
        return Fault("throttled", _retry_s(error, now), billed=False)
    if status is not None:
        failing = status in FAILING or status >= 500
        return Fault("failing", _retry_s(error, now), billed=status >= 500 or status == 408) if failing else None
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, TimeoutError | ConnectionError | json.JSONDecodeError):
        return Fault("failing")
    return Fault("failing") if names & {"TransportError", "APIConnectionError", "ClientConnectionError"} else None


def _status(error: Exception) -> int | None:
    for owner in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code", "http_status"):
            value = getattr(owner, name, None)
            if (
                isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600
            ):  # a sound one says nothing
                return int(value)
    return None


def _words(error: Exception) -> str:
    """What the error is called and says, for matching only: it may quote a prompt, so at most its beginning counts."""
    names = " ".join(cls.__name__ for cls in type(error).__mro__)
    return f"{names} {getattr(error, 'code', '')} {getattr(error, 'type', '')} {str(error)[:300]}".lower()


def _retry_s(error: Exception, now: Callable[[], float] | None) -> float | None:
    """Seconds, from an attribute or from the headers, where they are sound."""
    headers = getattr(error, "headers", None) or getattr(getattr(error, "response", None), "headers", None)
    found: dict[str, Any] = {}
    if isinstance(headers, Mapping) or hasattr(headers, "items"):
        found = {str(name).lower(): value for name, value in headers.items()}  # type: ignore[union-attr]
    for value, unit in ((getattr(error, "retry_after", None), 1.0), (found.get("retry-after-ms"), 1e-3),
                        (found.get("retry-after"), 1.0)):  # fmt: skip
        seconds = _seconds(value, now)
        if seconds is not None:
            return min(max(seconds * unit, 0.0), MOST_RETRY_S)
    return None


def _seconds(value: Any, now: Callable[[], float] | None) -> float | None:
    try:
        seconds = float(value)
        return seconds if math.isfinite(seconds) else None
    except (TypeError, ValueError):
        pass
    try:
        return parsedate_to_datetime(value).timestamp() - (now or time.time)()
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None


class Backoff:
    """Jittered exponential waits: the n-th is half to all of `BASE_S * 2 ** (n - 1)`, at most `MOST_S`."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311  # no secret

    def __call__(self, failures: int) -> float:
        """Seconds to wait after so many failures."""
        most = min(BASE_S * 2.0 ** min(failures - 1, 30), MOST_S)
        return most * self._rng.uniform(0.5, 1.0)


class _Circuit:
    """One model: closed (all calls), open until a time (none), then half open (one probe)."""

    __slots__ = ("calls", "failures", "generation", "openings", "probing", "throttled_until", "until")

    def __init__(self) -> None:
        self.calls = 0  # under way
        self.failures = 0  # in a row, while closed
        self.openings = 0  # in a row; above 0 the circuit is not closed
        self.until = self.throttled_until = -math.inf
        self.probing = False
        self.generation = 0  # calls begun before the circuit changed say nothing about it


class Health:
    """Which models are cooled down, and for how long. Safe to share between threads.

    A throttled model rests as long as its provider says. One that has failed a few times in a row rests for jittered,
    exponentially growing times; after each, one call probes it: if that goes well, all may come again.

    Args:
        models: Names; others are met on the way.
        clock: Seconds that only move forward.
        seed: Of the jitter.
    """

    def __init__(self, models: Iterable[str], clock: Callable[[], float], seed: int = 0) -> None:
        self.backoff = Backoff(seed)
        self._clock = clock
        self._lock = threading.Lock()
        self._circuits = {name: _Circuit() for name in models}

    def room(self, model: str) -> float:
        """How many calls may begin now, as far as the model's health goes: none, one probe, or any number."""
        with self._lock:
            circuit = self._of(model)
            now = self._clock()
            if now < max(circuit.until, circuit.throttled_until) or circuit.probing:
                return 0.0
            return 1.0 if circuit.openings else math.inf

    def rest_s(self, model: str) -> float:
        """Seconds until a call may begin; 0 = now. While a probe is out, the time is not known: 0."""
        with self._lock:
            circuit = self._of(model)
            return max(0.0, max(circuit.until, circuit.throttled_until) - self._clock())

    def begin(self, model: str) -> int:
        """A call begins; returns what to end it with."""
        with self._lock:
            circuit = self._of(model)
            circuit.calls += 1
            circuit.probing = circuit.openings > 0
            return circuit.generation

    def succeeded(self, model: str, generation: int) -> None:
        """The call went well."""
        with self._lock:
            circuit = self._ended(model)
            if generation == circuit.generation:
                circuit.generation += circuit.openings > 0
                circuit.failures, circuit.openings, circuit.probing = 0, 0, False

    def failed(self, model: str, generation: int, fault: Fault) -> float:
        """The call failed: seconds that the model rests for it. A context that was too long says nothing of it."""
        if fault.kind == "too_long":
            self.abandoned(model, generation)
            return 0.0
        with self._lock:
            circuit = self._ended(model)
            now = self._clock()
            told_s = fault.retry_s or 0.0
            told_s *= now + told_s > circuit.throttled_until  # news
            if told_s > 0:
                circuit.throttled_until = now + told_s
            if generation != circuit.generation:
                return told_s
            circuit.probing = False
            if fault.kind == "throttled" and fault.retry_s is not None:
                return told_s
            circuit.failures += 1
            enough = circuit.failures >= FAILURES + circuit.calls // UNDER_WAY
            if not (circuit.openings or enough or fault.kind == "throttled"):
                return told_s
            circuit.openings += 1
            circuit.generation += 1
            rest_s = self.backoff(circuit.openings)
            circuit.until = now + rest_s
            return max(rest_s, told_s)

    def abandoned(self, model: str, generation: int) -> None:
        """The call ended without saying anything of the model: cancelled, or its own fault."""
        with self._lock:
            circuit = self._ended(model)
            if generation == circuit.generation:
                circuit.probing = False

    def _ended(self, model: str) -> _Circuit:
        circuit = self._of(model)
        circuit.calls = max(0, circuit.calls - 1)
        return circuit

    def _of(self, model: str) -> _Circuit:
        return self._circuits.setdefault(model, _Circuit())
