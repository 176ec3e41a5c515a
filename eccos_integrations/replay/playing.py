"""One call as it is played: what is said, when, and what goes wrong with it."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from eccos_integrations.errors import ConfigError
from eccos_integrations.replay.faults import CutError, Faults, MalformedError, ReplayError
from eccos_integrations.replay.log import ABANDONED, Entry, Log

# A rough token: a word or a sign, with the space before it.
TOKEN = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says, what it uses and how long that takes.

    Attributes:
        model: Who answers.
        text: The answer.
        input_tokens: As recorded; where that is not known, counted roughly.
        output_tokens: Likewise; at most the cap of the call.
        cost_usd: As recorded; NaN if it was not, or if the cap cut the answer off.
        base_latency_s: Seconds before the first output token, at the recorded speed.
        latency_s: Seconds in all, likewise.
        finish_reason: `"stop"`, or `"length"` if the cap cut the answer off.
    """

    model: str
    text: str
    input_tokens: int
    output_tokens: int
    cost_usd: float
    base_latency_s: float
    latency_s: float
    finish_reason: str = "stop"

    def within(self, max_tokens: int | None) -> "Answer":
        """The answer under a cap on output tokens: the beginning of its text and of its time, as many as fit."""
        if max_tokens is None or self.output_tokens <= max_tokens:
            return self
        if max_tokens < 1:
            raise ConfigError(f"max_tokens={max_tokens}: give at least 1")
        part = max_tokens / self.output_tokens
        return replace(
            self,
            text=self.text[: int(part * len(self.text))],
            output_tokens=max_tokens,
            cost_usd=math.nan,
            latency_s=self.base_latency_s + part * (self.latency_s - self.base_latency_s),
            finish_reason="length",
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a streamed answer; the last one has no text, but the whole answer."""

    text: str
    answer: Answer | None = None


class Playing:
    """A call that runs, as a context: leaving it ends the call in the log, as answered, failed or abandoned.

    Either wait for `wait_s` and take the `answer`, or go through the `chunks`.

    Attributes:
        entry: Of the log.
    """

    def __init__(self, answer: Answer, log: Log, entry: Entry, faults: Faults, speed: float) -> None:
        self.entry = entry
        self._answer = answer
        self._log = log
        self._faults = faults
        self._speed = speed / faults.slow_factor if entry.fault == "slow" else speed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = 200 if error is None or isinstance(error, MalformedError | CutError) else ABANDONED
        self._log.end(self.entry, error.status_code if isinstance(error, ReplayError) else status)

    def abandon(self) -> None:
        """End the call because the caller has left, if it has not ended yet."""
        self._log.end(self.entry, ABANDONED)

    @property
    def wait_s(self) -> float:
        """Seconds until the answer, or the fault instead of it."""
        answer = self._answer
        match self.entry.fault:
            case "error":
                return answer.base_latency_s / self._speed
            case "hang":
                return self._faults.hang_s
            case "cut":
                return (answer.base_latency_s + answer.latency_s) / 2 / self._speed
            case _:
                return answer.latency_s / self._speed

    def answer(self) -> Answer:
        """The answer. A fault is raised; see `ReplayProvider.call`."""
        if self.entry.fault == "cut":
            raise CutError(f"replay: {self.entry.model!r} closed the connection, an injected fault")
        self._fail()
        return self._answer

    def chunks(self) -> Iterator[tuple[float, Chunk | None]]:
        """The answer in parts, each with the seconds to wait before it; None: only wait.

        The call has ended when the last part comes. A fault is raised; see `ReplayProvider.call`.
        """
        if self.entry.fault in {"error", "hang"}:
            yield self.wait_s, None
        else:
            yield self._answer.base_latency_s / self._speed, None
        self._fail()
        texts = TOKEN.findall(self._answer.text)
        whole = self.entry.fault != "cut"
        each_s = (self._answer.latency_s - self._answer.base_latency_s) / self._speed / max(len(texts), 1)
        for text in texts if whole else texts[: (len(texts) + 1) // 2]:
            yield each_s, Chunk(text)
        answer = self.answer()
        self._log.end(self.entry, 200)
        yield 0.0, Chunk("", answer)

    def _fail(self) -> None:
        match self.entry.fault:
            case "error":
                raise ReplayError(f"replay: {self.entry.model!r} failed, an injected fault", 500)
            case "hang":
                raise ReplayError(f"replay: {self.entry.model!r} hung, an injected fault", 504)
            case "malformed":
                raise MalformedError


def rough_tokens(text: str) -> int:
    """About how many tokens a text has, at least 1."""
    return max(1, sum(1 for _ in TOKEN.finditer(text)))
