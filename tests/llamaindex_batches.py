"""Batches that tests send through an `EccosLLM`: members that know how busy they were, and one door for all kinds."""

import asyncio
import threading
import time

from llama_index.core import VectorStoreIndex
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse, MockLLM
from llama_index.core.schema import TextNode

from eccos_integrations import Policy
from llamaindex_eccos import EccosLLM
from llamaindex_eccos.batch import achat_batch, acomplete_batch, aquery_batch, chat_batch, complete_batch, query_batch
from tests import llamaindex_members

SUMS = [f"add the numbers {i} and {i + 3}" for i in range(8)]
PROOFS = [f"prove the theorem of {name}" for name in ("Fermat", "Gauss", "Noether", "Abel")]
CHEAPEST = Policy(min_quality=0.0)


def fit(**small):
    """A router of `large` and `small`: small is as good on sums only, and has what is given."""
    return llamaindex_members.make_router(llamaindex_members.pool_of(small=small))


class Named(MockLLM):
    """Answers `name: prompt`, after a while; fails on what it is told to; knows how busy it was."""

    name: str = ""
    delay_s: float = 0.0
    poison: str = "no such text"
    error: type[Exception] = LookupError  # LlamaIndex's synthesizers swallow every ValueError

    def __init__(self, name, **settings):
        super().__init__()
        for field, value in {"name": name, **settings}.items():
            setattr(self, field, value)
        self._lock, self._asked, self._ended, self._busy, self._peak = threading.Lock(), [], [], 0, 0

    def _begin(self, prompt):
        with self._lock:
            self._asked.append(prompt)
            self._busy += 1
            self._peak = max(self._peak, self._busy)

    def _end(self):
        with self._lock:
            self._busy -= 1

    def _answer(self, prompt):
        if self.poison in prompt:
            raise self.error("told to fail")
        self._ended.append(prompt)
        return CompletionResponse(text=f"{self.name}: {prompt}")

    def complete(self, prompt, formatted=False, **kwargs):
        self._begin(prompt)
        try:
            time.sleep(self.delay_s)
            return self._answer(prompt)
        finally:
            self._end()

    async def acomplete(self, prompt, formatted=False, **kwargs):
        self._begin(prompt)
        try:
            await asyncio.sleep(self.delay_s)
            return self._answer(prompt)
        finally:
            self._end()

    def chat(self, messages, **kwargs):
        return ChatResponse(message=ChatMessage(self.complete(messages[-1].content).text, role="assistant"))

    async def achat(self, messages, **kwargs):
        text = (await self.acomplete(messages[-1].content)).text
        return ChatResponse(message=ChatMessage(text, role="assistant"))


def llm_of(router, policy=None, **settings):
    """An `EccosLLM` and its members, by name."""
    members = {name: Named(name, **settings) for name in router.models}
    return EccosLLM(members=members, router=router, policy=policy), members


def engine_of(llm, texts=("one is a number", "Fermat was a lawyer"), **settings):
    return VectorStoreIndex([TextNode(text=text) for text in texts]).as_query_engine(llm=llm, **settings)


def words_of(answer):
    """Of an answer of any kind."""
    return answer.message.content if isinstance(answer, ChatResponse) else str(answer)


def model_of(answer):
    return words_of(answer).partition(":")[0]


def chat_of(text):
    return [ChatMessage("Be brief.", role="system"), ChatMessage(text)]


async def answered(kind, how, llm, texts, **options):
    """The texts as a batch of a kind, by the synchronous or the asynchronous function."""
    if kind == "query":
        function, subject = (query_batch, aquery_batch), engine_of(llm)
    elif kind == "chat":
        function, subject, texts = (chat_batch, achat_batch), llm, [chat_of(text) for text in texts]
    else:
        function, subject = (complete_batch, acomplete_batch), llm
    if how == "async":
        return await function[1](subject, texts, **options)
    return await asyncio.to_thread(function[0], subject, texts, **options)  # there, no loop is running


def counted_plans(router, monkeypatch):
    """The sizes of the batches that a router plans from now on."""
    found, plan = [], router.plan

    def counting(texts, *rest, **more):
        found.append(len(texts))
        return plan(texts, *rest, **more)

    monkeypatch.setattr(router, "plan", counting)
    return found
