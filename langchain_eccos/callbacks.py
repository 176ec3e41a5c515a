"""What LLM runs cost: by the pool's prices, for each model and in total."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.context import register_configure_hook
from typing_extensions import override

from eccos_integrations.pool import ModelPool
from eccos_integrations.router import Router
from langchain_eccos.decisions import usage_of

NAMELESS = "(unnamed)"


@dataclass(frozen=True)
class ModelCost:
    """What one model's calls have used, and what of that is known to have cost how much.

    Attributes:
        calls: That ended well.
        input_tokens: All of them, the cached too.
        cached_tokens: Those of the input that the provider had cached.
        output_tokens: Of the answers.
        cost_usd: Of the calls whose cost is known.
        unknown_calls: Those that did not say what they used, or whose model has no price.
    """

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unknown_calls: int = 0

    def __add__(self, other: "ModelCost") -> "ModelCost":
        return ModelCost(**{name: value + getattr(other, name) for name, value in vars(self).items()})


class EccosCostCallback(BaseCallbackHandler):
    """Counts calls, tokens and USD of every LLM run that it hears of, whoever started it.

    A run is of the model that a router chose for it, else of the `model_name` in its answer. What no pool model
    answered, or one without prices, has an unknown cost: such calls are counted apart, never as zero. An answer from
    LangChain's cache costs nothing and uses no tokens.

    Args:
        pool: Has the prices; of a router, those it has when a run ends.

    Example:
        >>> from eccos_integrations import Model, ModelPool
        >>> from langchain_core.language_models import FakeMessagesListChatModel
        >>> from langchain_core.messages import AIMessage
        >>> pool = ModelPool([Model(name="a", input_usd_per_million_tokens=1, output_usd_per_million_tokens=5)])
        >>> used = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
        >>> answer = AIMessage("4", usage_metadata=used, response_metadata={"model_name": "a"})
        >>> cost = EccosCostCallback(pool)
        >>> _ = FakeMessagesListChatModel(responses=[answer]).invoke("2 + 2?", {"callbacks": [cost]})
        >>> cost
        EccosCostCallback(1 call, 2e-05 USD)
    """

    run_inline = True  # it is quick, and an event loop need not leave for it
    ignore_chain = ignore_agent = ignore_retriever = ignore_retry = ignore_custom_event = True

    def __init__(self, pool: ModelPool | Router) -> None:
        self._source, self._lock = pool, threading.Lock()
        self._chosen: dict[UUID, str] = {}
        self._costs: dict[str, ModelCost] = {}

    @property
    def by_model(self) -> dict[str, ModelCost]:
        """What each model that was called has cost so far."""
        with self._lock:
            return dict(self._costs)

    @property
    def total(self) -> ModelCost:
        """All models together."""
        return sum(self.by_model.values(), ModelCost())

    @property
    def total_cost_usd(self) -> float:
        """USD of all calls whose cost is known; `total.unknown_calls` says of how many it is not."""
        return self.total.cost_usd

    def report(self) -> str:
        """A line per model, the dearest first, and one for all. No text of a query is in it."""
        dearest = sorted(self.by_model.items(), key=lambda item: -item[1].cost_usd)
        return "\n".join(f"{name}: {_words(cost)}" for name, cost in [*dearest, ("total", self.total)])

    def __repr__(self) -> str:
        total = self.total
        unknown = f", {total.unknown_calls} of unknown cost" if total.unknown_calls else ""
        return f"EccosCostCallback({_counted(total.calls, 'call')}, {total.cost_usd:.6g} USD{unknown})"

    @override
    def on_llm_start(self, *args: Any, run_id: UUID, metadata: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Note whom a router chose for the run."""
        told = metadata or {}
        # LangChain copies a pin from the config to every run below it; only a chosen model's has a decision, too.
        if "eccos_decision_id" in told and isinstance(name := told.get("eccos_model"), str):
            with self._lock:
                self._chosen[run_id] = name

    @override
    def on_chat_model_start(
        self, *args: Any, run_id: UUID, metadata: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As `on_llm_start`."""
        self.on_llm_start(run_id=run_id, metadata=metadata)

    @override
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the run: it has no answer that could say what it used."""
        with self._lock:
            self._chosen.pop(run_id, None)

    @override
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Count what the run used."""
        generation = response.generations[0][0] if response.generations and response.generations[0] else None
        message = generation.message if isinstance(generation, ChatGeneration) else None
        pool = self._source.pool if isinstance(self._source, Router) else self._source
        with self._lock:
            name = self._chosen.pop(run_id, None)
            if name is None or name not in pool:
                said = (message.response_metadata if message is not None else response.llm_output) or {}
                name = str(said.get("model_name") or name or NAMELESS)
            self._costs[name] = self._costs.get(name, ModelCost()) + _cost(message, name, pool)


def _cost(message: BaseMessage | None, name: str, pool: ModelPool) -> ModelCost:
    """Of one call."""
    usage = usage_of(message)
    if usage is None:
        return ModelCost(calls=1, unknown_calls=1)
    usd = usage.usd(pool[name]) if name in pool else usage.cost_usd
    cost = ModelCost(1, usage.input_tokens, usage.cached_tokens, usage.output_tokens)
    return replace(cost, unknown_calls=1) if usd is None else replace(cost, cost_usd=usd)


def _words(cost: ModelCost) -> str:
    cached = f" ({cost.cached_tokens} cached)" if cost.cached_tokens else ""
    tokens = f"{cost.input_tokens}{cached} + {cost.output_tokens} tokens"
    known = f", {cost.cost_usd:.6g} USD" if cost.unknown_calls < cost.calls or not cost.calls else ""
    unknown = f", cost of {_counted(cost.unknown_calls, 'call')} unknown" if cost.unknown_calls else ""
    return f"{_counted(cost.calls, 'call')}, {tokens}{known}{unknown}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# One for each depth of nesting: LangChain keeps every variable it is told of for ever.
_OPEN: list[ContextVar[EccosCostCallback | None]] = []
_OPENING = threading.Lock()


@contextmanager
def get_eccos_cost(pool: ModelPool | Router) -> Iterator[EccosCostCallback]:
    """Count what all LLM runs inside the block cost. Blocks may stand in each other; each counts all that is in it.

    Args:
        pool: Has the prices, or a router with such a pool.

    Example:
        >>> from eccos_integrations import Model, ModelPool
        >>> from langchain_core.language_models import FakeListChatModel
        >>> with get_eccos_cost(ModelPool([Model(name="a")])) as cost:
        ...     answer = FakeListChatModel(responses=["4"]).invoke("2 + 2?")
        >>> cost.total.calls, cost.total.unknown_calls
        (1, 1)
    """
    callback = EccosCostCallback(pool)
    with _OPENING:
        slot = next((slot for slot in _OPEN if slot.get() is None), None)
        if slot is None:
            slot = ContextVar(f"eccos_cost_{len(_OPEN)}", default=None)
            register_configure_hook(slot, inheritable=True)
            _OPEN.append(slot)
    token = slot.set(callback)
    try:
        yield callback
    finally:
        slot.reset(token)
