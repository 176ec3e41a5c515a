"""Through LangChain, too, limits hold and nothing is lost: a mixed load on a provider with limits and faults."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict

from eccos_integrations import Model, ModelPool, Policy, Router
from eccos_integrations.replay import Faults, ReplayProvider
from eccos_integrations.serving.dispatch import Dispatcher
from langchain_eccos import RunnableRouter
from tests.conftest import PRICES, make_table

LIMITS = {"tiny": 3, "small": 5, "medium": 8}
CALLS = 2000


class ReplayChat(BaseChatModel):
    """A model of the provider; the prompt names what is asked."""

    name: str
    provider: ReplayProvider
    model_config = ConfigDict(arbitrary_types_allowed=True)

    @property
    def _llm_type(self):
        return "replay"

    def _result(self, answer):
        return ChatResult(generations=[ChatGeneration(message=AIMessage(answer.text, usage_metadata=used(answer)))])

    def _chunk(self, chunk):
        last = {} if chunk.answer is None else {"usage_metadata": used(chunk.answer), "chunk_position": "last"}
        return ChatGenerationChunk(message=AIMessageChunk(chunk.text, **last))

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        prompt = messages[-1].text
        return self._result(self.provider.call(self.name, prompt, request_id=prompt, **kwargs))

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        prompt = messages[-1].text
        return self._result(await self.provider.acall(self.name, prompt, request_id=prompt, **kwargs))

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        prompt = messages[-1].text
        for chunk in self.provider.stream(self.name, prompt, request_id=prompt, **kwargs):
            yield self._chunk(chunk)

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        prompt = messages[-1].text
        async for chunk in self.provider.astream(self.name, prompt, request_id=prompt, **kwargs):
            yield self._chunk(chunk)


def used(answer):
    tokens = {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens}
    return {**tokens, "total_tokens": answer.input_tokens + answer.output_tokens}


@pytest.fixture(scope="module")
def table():
    return make_table(seed=0, per_task=20).select(list(LIMITS))


def text(chunks):
    return "".join(chunk.text for chunk in chunks)


def test_a_mixed_load_breaks_no_limit_and_loses_no_answer(table):
    pool = ModelPool([
        Model(name=name, input_usd_per_million_tokens=PRICES[name][0], output_usd_per_million_tokens=PRICES[name][1],
              max_concurrency=most)
        for name, most in LIMITS.items()
    ])  # fmt: skip
    faults = Faults(error_rate=0.02, malformed_rate=0.01, slow_rate=0.02, seed=1)
    provider = ReplayProvider(table, pool, faults=faults, speed=500)
    policy = Policy(min_quality=0.97, relative_to="best")
    router = Router.fit(table, pool=pool, policy=policy, predictor="retrieval")
    dispatcher = Dispatcher(router, max_attempts=8)
    models = {name: ReplayChat(name=name, provider=provider) for name in LIMITS}
    runnable = RunnableRouter(models, router, dispatcher=dispatcher)
    asked = [f"{table.queries[i % len(table.queries)]} (no. {i})" for i in range(CALLS)]
    answers: dict[str, str] = {}

    def keep(prompts, messages):
        answers.update({prompt: message.text for prompt, message in zip(prompts, messages, strict=True)})

    def invoke(prompts):
        keep(prompts, [runnable.invoke(prompt) for prompt in prompts])

    def stream(prompts):
        answers.update({prompt: text(runnable.stream(prompt)) for prompt in prompts})

    def batch(prompts, most=None):
        keep(prompts, runnable.batch(prompts, {"max_concurrency": most}))

    async def astream(prompt):
        answers[prompt] = text([chunk async for chunk in runnable.astream(prompt)])

    async def ainvoke(prompts):
        keep(prompts, await asyncio.gather(*map(runnable.ainvoke, prompts)))

    async def abatch(prompts, most=None):
        keep(prompts, await runnable.abatch(prompts, {"max_concurrency": most}))

    def in_a_loop(prompts):
        async def main():
            streams = [astream(prompt) for prompt in prompts[:200]]
            await asyncio.gather(
                *streams, ainvoke(prompts[200:300]), abatch(prompts[300:400]), abatch(prompts[400:], 7)
            )

        asyncio.run(main())

    with ThreadPoolExecutor(40) as threads:
        jobs = [threads.submit(invoke, asked[k : k + 20]) for k in range(0, 400, 20)]
        jobs += [threads.submit(stream, asked[k : k + 20]) for k in range(400, 600, 20)]
        jobs += [threads.submit(batch, asked[k : k + 100], 12) for k in (600, 700)]
        jobs += [threads.submit(batch, asked[k : k + 100]) for k in (800, 900)]
        jobs += [threads.submit(in_a_loop, asked[k : k + 500]) for k in (1000, 1500)]
        for job in jobs:
            job.result(120)
    assert provider.violations() == {}
    assert provider.answered == Counter(asked)  # each once, none twice
    assert sorted(answers) == sorted(asked)
    assert all(answers.values())
    assert {entry.fault for entry in provider.log} == {"", "error", "malformed", "slow"}
    assert len({entry.model for entry in provider.log}) == 3
    assert all(entry.status in {200, 500} for entry in provider.log)
