"""`RunnableRouter`: named runnables behind one, each input sent to the one the router chooses."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.base import coerce_to_runnable
from langchain_core.runnables.config import get_executor_for_config, merge_configs
from langchain_core.runnables.utils import Input, Output
from pydantic import ConfigDict, Field
from typing_extensions import override

from eccos_integrations.errors import ConfigError, NoCapacityError
from eccos_integrations.plan import Decision
from eccos_integrations.policy import Policy
from eccos_integrations.router import Router
from langchain_eccos.query import QuerySource, query_text


class RunnableRouter(RunnableSerializable[Input, Output]):
    """Routes each input to one of several named runnables: models, chains, agents.

    `invoke` and `stream` decide one query at the router's current prices. `batch` decides all its inputs in one joint
    solve, also as a step of a chain. The router opens a chain run; the chosen member owns the run below it, so tokens
    are counted once.

    Example:
        ```python
        from eccos_integrations import Policy, Router, load_sample
        from langchain_eccos import RunnableRouter

        train, test = load_sample().split(0.7, seed=0)
        router = Router.fit(train, policy=Policy(min_quality=0.97, relative_to="best"))
        chain = RunnableRouter(members={name: my_chat_models[name] for name in router.models}, router=router)
        answers = chain.batch(test.queries)  # one joint solve
        ```
    """

    members: Mapping[str, Runnable[Any, Any]]
    """The runnables by name: exactly the models of the router."""

    router: Router = Field(exclude=True)
    """Decides who gets which input."""

    policy: Policy | None = None
    """What must hold; default the router's own policy."""

    query: QuerySource = Field(default=None, exclude=True)
    """Key of a dict input, or function from an input to its text; see `langchain_eccos.query.query_text`."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")  # a misspelt policy is no policy

    def __init__(
        self,
        members: Mapping[str, Runnable[Any, Any] | Callable[..., Any]],
        router: Router,
        policy: Policy | None = None,
        query: QuerySource = None,
        **kwargs: Any,
    ) -> None:
        """Check that the members are the router's models.

        Raises:
            ConfigError: A model of the router has no member, or a member is no model of the router.
        """
        router.check_members(members)
        if policy is not None:
            policy.check_models(router.models)
        runnables = {name: coerce_to_runnable(member) for name, member in members.items()}
        super().__init__(members=runnables, router=router, policy=policy, query=query, **kwargs)

    @override
    def invoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        return self._call_with_config(self._invoke, input, config, **kwargs)

    @override
    async def ainvoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        return await self._acall_with_config(self._ainvoke, input, config, **kwargs)

    @override
    def batch(
        self,
        inputs: list[Input],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Output]:
        answer = partial(self._batch, go_on=return_exceptions)
        return self._batch_with_config(answer, inputs, config, return_exceptions=return_exceptions, **kwargs)

    @override
    async def abatch(
        self,
        inputs: list[Input],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Output]:
        answer = partial(self._abatch, go_on=return_exceptions)
        return await self._abatch_with_config(answer, inputs, config, return_exceptions=return_exceptions, **kwargs)

    @override
    def stream(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any | None) -> Iterator[Output]:
        yield from self.transform(iter([input]), config, **kwargs)

    @override
    async def astream(
        self, input: Input, config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Output]:
        async def one() -> AsyncIterator[Input]:
            yield input

        async for chunk in self.atransform(one(), config, **kwargs):
            yield chunk

    @override
    def transform(
        self, input: Iterator[Input], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> Iterator[Output]:
        yield from self._transform_stream_with_config(input, self._transform, config, **kwargs)

    @override
    async def atransform(
        self, input: AsyncIterator[Input], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Output]:
        async for chunk in self._atransform_stream_with_config(input, self._atransform, config, **kwargs):
            yield chunk

    # LangChain names these arguments; `config` is the child config, with the callbacks of the router's own chain run.

    def _invoke(
        self, input: Input, run_manager: CallbackManagerForChainRun, config: RunnableConfig, **kwargs: Any
    ) -> Output:
        decision = self._route(input)
        return cast("Output", self._member(decision).invoke(input, _child(config, decision), **kwargs))

    async def _ainvoke(
        self, input: Input, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig, **kwargs: Any
    ) -> Output:
        decision = await asyncio.to_thread(self._route, input)
        return cast("Output", await self._member(decision).ainvoke(input, _child(config, decision), **kwargs))

    def _batch(
        self,
        inputs: list[Input],
        run_manager: list[CallbackManagerForChainRun],
        config: list[RunnableConfig],
        *,
        go_on: bool,
        **kwargs: Any,
    ) -> list[Exception | Output]:
        decisions = self._plan(inputs, go_on=go_on)

        def answer(input: Input, config: RunnableConfig, decision: Decision | ConfigError) -> Exception | Output:
            if isinstance(decision, ConfigError):
                return decision
            try:
                return cast("Output", self._member(decision).invoke(input, _child(config, decision), **kwargs))
            except Exception as error:
                if not go_on:  # the calls not yet begun would be paid for and thrown away
                    raise
                return error

        with get_executor_for_config(config[0]) as executor:
            return list(executor.map(answer, inputs, config, decisions))

    async def _abatch(
        self,
        inputs: list[Input],
        run_manager: list[AsyncCallbackManagerForChainRun],
        config: list[RunnableConfig],
        *,
        go_on: bool,
        **kwargs: Any,
    ) -> list[Exception | Output]:
        decisions = await asyncio.to_thread(self._plan, inputs, go_on=go_on)

        most = config[0].get("max_concurrency")
        turn: AbstractAsyncContextManager[Any] = nullcontext() if most is None else asyncio.Semaphore(most)

        async def answer(input: Input, config: RunnableConfig, decision: Decision | ConfigError) -> Exception | Output:
            if isinstance(decision, ConfigError):
                return decision
            async with turn:
                try:
                    member = self._member(decision)
                    return cast("Output", await member.ainvoke(input, _child(config, decision), **kwargs))
                except Exception as error:
                    if not go_on:  # the calls not yet begun would be paid for and thrown away
                        raise
                    return error

        try:
            async with asyncio.TaskGroup() as calls:  # the first failure cancels the rest
                tasks = [calls.create_task(answer(*each)) for each in zip(inputs, config, decisions, strict=True)]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    def _transform(
        self, input: Iterator[Input], run_manager: CallbackManagerForChainRun, config: RunnableConfig, **kwargs: Any
    ) -> Iterator[Output]:
        whole = _joined(list(input))
        decision = self._route(whole)
        yield from self._member(decision).stream(whole, _child(config, decision), **kwargs)

    async def _atransform(
        self,
        input: AsyncIterator[Input],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AsyncIterator[Output]:
        whole = _joined([chunk async for chunk in input])
        decision = await asyncio.to_thread(self._route, whole)
        async for chunk in self._member(decision).astream(whole, _child(config, decision), **kwargs):
            yield chunk

    def _route(self, input: Input) -> Decision:
        return self.router.route(query_text(input, self.query), self.policy)

    def _plan(self, inputs: list[Input], *, go_on: bool) -> list[Decision | ConfigError]:
        """One decision per input, made jointly; for an input without a query its error, if the others go on."""
        found: list[str | ConfigError] = []
        for each in inputs:
            try:
                found.append(query_text(each, self.query))
            except ConfigError as error:
                if not go_on:
                    raise
                found.append(error)
        plan = self.router.plan([text for text in found if isinstance(text, str)], self.policy)
        decisions = iter(plan.decisions)
        return [next(decisions) if isinstance(text, str) else text for text in found]

    def _member(self, decision: Decision) -> Runnable[Any, Any]:
        if decision.model is None:
            raise NoCapacityError("every model is full by the policy's capacity; raise it, or send a smaller batch")
        return self.members[decision.model]


def _child(config: RunnableConfig, decision: Decision) -> RunnableConfig:
    """The member's config: what was decided, visible in its run."""
    decided = {
        "eccos_model": decision.model,
        "eccos_decision_id": decision.id,
        "eccos_quality": decision.quality,
        "eccos_cost_usd": decision.cost_usd,
    }
    return merge_configs(config, {"metadata": decided, "tags": [f"eccos:{decision.model}"]})


def _joined(chunks: list[Any]) -> Any:
    """Streamed pieces of one input, added up as LangChain does; the last one where they do not add.

    Raises:
        ConfigError: There are none.
    """
    if not chunks:
        raise ConfigError("input: the stream ended before it began; give at least one piece")
    whole = chunks[0]
    for chunk in chunks[1:]:
        try:
            whole = whole + chunk
        except TypeError:
            whole = chunk
    return whole
