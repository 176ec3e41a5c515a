"""A router of three models, one dear and good, and members that say who answered: for the tests of langchain_eccos."""

import asyncio
import threading
import time
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from pydantic import Field

from eccos_integrations import Model, ModelPool, OutcomeTable, Policy, Router
from eccos_integrations.serving.dispatch import Dispatcher
from eccos_integrations.serving.feedback import FeedbackLog

MODELS = ["small", "medium", "large"]
QUERIES = [f"{'add' if i % 3 else 'prove'} thing {i}" for i in range(30)]
USD_PER_MILLION = {"small": 1.0, "medium": 5.0, "large": 30.0}
INPUT_TOKENS, OUTPUT_TOKENS = 20, 50
USED = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "input_token_details": {"cache_read": 2}}


class SpyRouter(Router):
    """A router that counts how many queries each joint solve, and each forecast outside of one, was about."""

    def __init__(self, learnt):
        super().__init__(learnt)
        self.planned: list[int] = []
        self.asked: list[str] = []

    def plan(self, queries, policy=None, groups=None, *, forbidden=None):
        self.planned.append(len(queries))
        return super().plan(queries, policy, groups, forbidden=forbidden)

    def forecast(self, queries, policy=None):
        self.asked += queries
        return super().forecast(queries, policy)


@cache
def _learnt(limits):
    rng = np.random.default_rng(0)
    easy = rng.random(90) < 0.5
    queries = [f"{'add' if e else 'prove'} item number {i}" for i, e in enumerate(easy)]
    chance = np.where(easy[:, None], [0.95, 0.97, 0.99], [0.2, 0.6, 0.95])
    quality = (rng.random((90, 3)) < chance).astype(float)
    prices = np.array(list(USD_PER_MILLION.values()))
    table = OutcomeTable(
        [str(i) for i in range(90)],
        queries,
        MODELS,
        quality,
        cost_usd=np.tile((INPUT_TOKENS + OUTPUT_TOKENS) * prices / 1e6, (90, 1)),
        input_tokens=np.full((90, 3), float(INPUT_TOKENS)),
        output_tokens=np.full((90, 3), float(OUTPUT_TOKENS)),
    )
    pool = ModelPool(
        [
            Model(
                name=name,
                input_usd_per_million_tokens=usd,
                output_usd_per_million_tokens=usd,
                **{field: dict(by_name).get(name) for field, by_name in limits},
            )
            for name, usd in USD_PER_MILLION.items()
        ]
    )
    policy = Policy(min_quality=0.95, relative_to="best")
    return Router.fit(table, pool=pool, policy=policy, predictor="retrieval")._learnt


def router_of(**limits) -> SpyRouter:
    """A new one, with limits of the pool's models, each a mapping by name: `max_concurrency={"small": 3}`."""
    return SpyRouter(_learnt(tuple((field, tuple(by_name.items())) for field, by_name in limits.items())))


def at_once(router, **settings) -> Dispatcher:
    """A dispatcher that waits for nobody else."""
    return Dispatcher(router, window_s=0, **settings)


def naming(name: str) -> RunnableLambda[Any, str]:
    """A member that says who answered what."""
    return RunnableLambda(lambda value, **_: f"{name}:{value}")


def members() -> dict[str, RunnableLambda[Any, str]]:
    return {name: naming(name) for name in MODELS}


class ChatModel(BaseChatModel):
    """A chat model that repeats what it is asked, and notes the arguments of its calls."""

    name: str = "chat"
    usage: dict[str, Any] | None = Field(default_factory=lambda: dict(USED))
    failures: list[Exception] = Field(default_factory=list)
    calls: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self):
        return "chat"

    def _begin(self, messages, kwargs):
        self.calls.append(kwargs)
        if self.failures:
            raise self.failures.pop(0)
        return f"{self.name}:{messages[-1].text}"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        text = self._begin(messages, kwargs)
        message = AIMessage(text, usage_metadata=self.usage, response_metadata={"model_name": self.name})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        for word in self._begin(messages, kwargs).split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(word))
        last = AIMessageChunk("", usage_metadata=self.usage, chunk_position="last")
        yield ChatGenerationChunk(message=last)


def chat_models(**fields) -> dict[str, ChatModel]:
    return {name: ChatModel(name=name, **fields) for name in MODELS}


class Books(FeedbackLog):
    """A log that shows the tokens that were booked: of the input, of the answer, and cached."""

    def __init__(self):
        super().__init__(None)
        self.tokens: list[tuple[int, int, int] | None] = []

    def submit_used(self, decision_id, model, **rest):
        used = [rest.get(f"{kind}_tokens") for kind in ("input", "output", "cached")]
        self.tokens.append(None if used[0] is None else tuple(used))
        return super().submit_used(decision_id, model, **rest)


class InFlight:
    """Members that count how many of them are called at a time."""

    def __init__(self, seconds=0.002):
        self.lock, self.now, self.most, self.seconds = threading.Lock(), 0, 0, seconds
        self.by_input = {}

    def begin(self, value):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.by_input[value] = self.now

    def end(self):
        with self.lock:
            self.now -= 1

    def call(self, value):
        self.begin(value)
        time.sleep(self.seconds)
        self.end()
        return value

    async def acall(self, value):
        self.begin(value)
        await asyncio.sleep(self.seconds)
        self.end()
        return value

    def members(self):
        return {name: RunnableLambda(self.call, self.acall) for name in MODELS}


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def free(dispatcher, model):
    now = dispatcher.ledger.free()
    return now.concurrency[now.models.index(model)]


@contextmanager
def holding(dispatcher, model, over):
    """One call of a model is under way until `over`; gives whether that came in time."""
    under_way, held = threading.Event(), []

    def call(ticket):
        under_way.set()
        held.append(over.wait(20))
        return None, None

    thread = threading.Thread(target=dispatcher.call, args=("x", call), kwargs={"candidates": [model]})
    thread.start()
    assert under_way.wait(20)
    try:
        yield held
    finally:
        thread.join()
