"""A recorded outcome table played back as a provider: with latency, limits and faults, and books of its own."""

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import OutcomeTable
from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.replay.faults import Faults, ReplayError
from eccos_integrations.replay.log import Entry, Log
from eccos_integrations.replay.models import Reference, ReplayModel
from eccos_integrations.replay.playing import Answer, Chunk, Playing, rough_tokens

# Of a model whose speed is neither recorded nor in the pool.
BASE_LATENCY_S = 0.2
OUTPUT_TOKENS_PER_S = 100.0
# What a refused caller waits for the end of other calls, at least.
LEAST_PATIENCE_S = 0.01


class ReplayProvider:
    """All models of a table behind one provider's limits. Safe to share between threads and event loops.

    A request above a limit is refused with a 429 that says when to come back, and counted: `violations()` says from the
    log alone how often that was.

    Args:
        table: Its questions can be asked.
        pool: The models to serve, with their limits and speeds; default all of the table without limits.
        references: Right answers by query id; see `ReplayModel`.
        faults: What goes wrong; default nothing.
        speed: Recorded latencies are divided by it; infinite: no waiting. Limits are per real minute at any speed.
        clock: Seconds that only move forward.

    Raises:
        ConfigError: The pool has a model that the table has not, or the speed is not above 0.

    Example:
        >>> from eccos_integrations import load_sample
        >>> from eccos_integrations.replay import load_sample_references
        >>> pool = ModelPool([Model(name="gpt-4o-mini-2024-07-18", requests_per_minute=1)])
        >>> provider = ReplayProvider(load_sample(), pool, load_sample_references(), speed=math.inf)
        >>> answer = provider.call("gpt-4o-mini-2024-07-18", load_sample().queries[0])
        >>> answer.text, answer.output_tokens
        ('[(4, 1), (4, 1), (4, 1), (4, 1), (2, 3), (2, 3)]', 716)
        >>> try:
        ...     provider.call("gpt-4o-mini-2024-07-18", load_sample().queries[1])
        ... except ReplayError as error:
        ...     error.status_code, provider.violations()
        (429, {'gpt-4o-mini-2024-07-18': {'requests_per_minute': 1}})
    """

    def __init__(
        self,
        table: OutcomeTable,
        pool: ModelPool | None = None,
        references: Mapping[str, Reference] | None = None,
        faults: Faults | None = None,
        *,
        speed: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not speed > 0:
            raise ConfigError(f"speed={speed}: give a number above 0; inf waits for nothing")
        self.pool = pool or ModelPool([Model(name=name) for name in table.models])
        if strangers := [name for name in self.pool.names if name not in table.models]:
            raise ConfigError(f"pool: the table has no model {strangers[0]!r}; it has {table.models}")
        self.faults = faults or Faults()
        self.speed = speed
        self._questions = table.queries
        self._latency_s = dict(zip(table.models, table.latency_s.T, strict=True))
        self._models = {name: ReplayModel(name, table, references) for name in self.pool.names}
        self._answers: dict[tuple[str, int], Answer] = {}  # by model and row
        self._log = Log(self.pool, clock)
        self._faulty = self.faults.rate > 0
        self._attempts: Counter[tuple[str, str]] = Counter()  # by model and prompt
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"ReplayProvider({self.pool.names}, {len(self._log.entries)} requests so far)"

    @property
    def log(self) -> list[Entry]:
        """Every request so far, in the order in which they began."""
        return self._log.entries

    @property
    def answered(self) -> Counter[str]:
        """How often each request id got a whole, sound answer."""
        return self._log.answered()

    def violations(self) -> dict[str, dict[str, int]]:
        """How many requests came above a limit, by model and limit; empty: none. Reckoned from the log alone."""
        return self._log.violations()

    def call(self, model: str, prompt: str, *, max_tokens: int | None = None, request_id: str | None = None) -> Answer:
        """Ask a model.

        Args:
            model: Its name in the pool.
            prompt: A recorded question, or a longer text that contains one.
            max_tokens: Most output tokens.
            request_id: The caller's name for what it asks; see `answered`.

        Raises:
            ConfigError: The model is unknown, or it has no record of the question. The log does not show the request.
            ReplayError: The request was refused (429), or failed (500, 504) by an injected fault.
            MalformedError: Likewise.
            CutError: Likewise.
        """
        with self.begin(self.recorded(model, prompt).within(max_tokens), prompt, request_id) as playing:
            if playing.wait_s:  # sleeping for nothing takes its time, too
                time.sleep(playing.wait_s)
            return playing.answer()

    async def acall(
        self, model: str, prompt: str, *, max_tokens: int | None = None, request_id: str | None = None
    ) -> Answer:
        """As `call`. Cancelled, the call ends at once."""
        with self.begin(self.recorded(model, prompt).within(max_tokens), prompt, request_id) as playing:
            await asyncio.sleep(playing.wait_s)
            return playing.answer()

    def stream(
        self, model: str, prompt: str, *, max_tokens: int | None = None, request_id: str | None = None
    ) -> Iterator[Chunk]:
        """As `call`, in parts. The call begins with the first."""
        with self.begin(self.recorded(model, prompt).within(max_tokens), prompt, request_id) as playing:
            for wait_s, chunk in playing.chunks():
                if wait_s:
                    time.sleep(wait_s)
                if chunk:
                    yield chunk

    async def astream(
        self, model: str, prompt: str, *, max_tokens: int | None = None, request_id: str | None = None
    ) -> AsyncIterator[Chunk]:
        """As `stream`."""
        with self.begin(self.recorded(model, prompt).within(max_tokens), prompt, request_id) as playing:
            for wait_s, chunk in playing.chunks():
                await asyncio.sleep(wait_s)
                if chunk:
                    yield chunk

    def recorded(self, model: str, prompt: str) -> Answer:
        """What a model answers by the table, without asking it.

        Raises:
            ConfigError: The model is unknown, or it has no record of the question.
        """
        row = self._model(model).row(prompt)
        answer = self._answers.get((model, row))
        if answer is None:
            question = self._questions[row]
            once = self._model(model)(question)
            recorded_s = float(self._latency_s[model][row])
            answer = self._timed(model, once.text, _tokens(once.input_tokens, question),
                                 _tokens(once.output_tokens, once.text), once.cost_usd, recorded_s)  # fmt: skip
            self._answers[model, row] = answer
        return answer

    def improvised(self, model: str, prompt: str, text: str) -> Answer:
        """An answer of one's own to a prompt of which the table has no record: tokens counted roughly.

        Raises:
            ConfigError: The model is unknown.
        """
        name = self._model(model).name
        return self._timed(name, text, rough_tokens(prompt), rough_tokens(text), math.nan, math.nan)

    def begin(self, answer: Answer, prompt: str, request_id: str | None = None) -> Playing:
        """Begin a call that gives an answer; see `Playing` for how to go through with it.

        Args:
            answer: From `recorded` or `improvised`.
            prompt: What was asked; the draw of a fault depends on it.
            request_id: The caller's name for what it asks.

        Raises:
            ReplayError: The request came above a limit; status 429.
        """
        model = answer.model
        patience_s = max(answer.latency_s / self.speed, LEAST_PATIENCE_S)
        entry, retry_s = self._log.begin(model, answer.input_tokens, answer.output_tokens, request_id, patience_s)
        if retry_s is not None:
            raise ReplayError(f"replay: {model!r} is above a limit; come back in {retry_s:.3g} s", 429, retry_s)
        if self._faulty:
            with self._lock:
                attempt = self._attempts[model, prompt]
                self._attempts[model, prompt] = attempt + 1
            entry.fault = self.faults.draw(model, prompt, attempt) or ""
        return Playing(answer, self._log, entry, self.faults, self.speed)

    def _model(self, name: str) -> ReplayModel:
        try:
            return self._models[name]
        except KeyError:
            raise ConfigError(f"replay: there is no model {name!r}; there are {self.pool.names}") from None

    def _timed(
        self, model: str, text: str, input_tokens: int, output_tokens: int, cost_usd: float, recorded_s: float
    ) -> Answer:
        settings = self.pool[model]
        base_s = BASE_LATENCY_S if settings.base_latency_s is None else settings.base_latency_s
        latency_s = base_s + output_tokens / (settings.output_tokens_per_s or OUTPUT_TOKENS_PER_S)
        if not math.isnan(recorded_s):
            base_s, latency_s = min(base_s, recorded_s), recorded_s
        return Answer(model, text, input_tokens, output_tokens, cost_usd, base_s, latency_s)


def _tokens(recorded: float, text: str) -> int:
    return rough_tokens(text) if math.isnan(recorded) else round(recorded)
