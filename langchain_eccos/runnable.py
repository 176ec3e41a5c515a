"""`RunnableRouter`: named runnables behind one, each input sent to the one the router chooses."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import Any, cast

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import coerce_to_runnable
from langchain_core.runnables.config import get_config_list
from langchain_core.runnables.utils import Input, Output
from pydantic import Field
from typing_extensions import override

from eccos_integrations.errors import ConfigError
from eccos_integrations.policy import Policy
from eccos_integrations.router import Router
from eccos_integrations.serving.dispatch import Dispatcher
from eccos_integrations.serving.jointly import Asked
from langchain_eccos.batching import AsyncTurn, Turn, in_tasks, in_threads
from langchain_eccos.branches import Branches
from langchain_eccos.calling import Calls
from langchain_eccos.joint import Configs, JointBatches
from langchain_eccos.query import QuerySource


class RunnableRouter(JointBatches[Input, Output], Branches[Input, Output]):
    """Routes each input to one of several named runnables: models, chains, agents.

    `invoke` and `stream` decide one query at the router's current prices. `batch` and `batch_as_completed` decide all
    their inputs in one joint solve, also as a step of `chain.batch`, with `with_retry`, `with_fallbacks`, `map()`.
    `RunnableParallel`, `RunnableBranch`, `RunnableLambda` and graphs call one by one, whatever they are given.

    Every call goes through a dispatcher: limits hold, and what fails before its first
    chunk goes to another member. The router opens a chain run; the chosen member owns the run below it, so tokens are
    counted once. The decision stands in that run's metadata and tags, in the event `eccos_decision`, and in
    `response_metadata["eccos"]` of an answer that is a message.

    One call's own settings are in `config["configurable"]`: `eccos_model`, `eccos_min_quality`, `eccos_max_cost_usd`.
    `config["max_concurrency"]` caps the members' calls of a batch, all models together.

    Example:
        >>> from eccos_integrations import Router, load_sample
        >>> router = Router.fit(load_sample().take(range(60)), predictor="prior")
        >>> def member(name):
        ...     return lambda question: f"{name} on {question}"
        >>> runnable = RunnableRouter(members={name: member(name) for name in router.models}, router=router)
        >>> runnable.invoke("2 + 2?") == f"{router.route('2 + 2?').model} on 2 + 2?"
        True
        >>> answers = runnable.batch(["2 + 2?", "3 + 3?"])  # one joint solve
        >>> pinned = runnable.with_config(configurable={"eccos_model": router.models[0]})
        >>> pinned.invoke("2 + 2?") == f"{router.models[0]} on 2 + 2?"
        True
    """

    router: Router = Field(exclude=True)
    """Decides who gets which input."""

    policy: Policy | None = None
    """What must hold; default the router's own policy."""

    query: QuerySource = Field(default=None, exclude=True)
    """Key of a dict input, or function from an input to its text; see `langchain_eccos.query.query_text`."""

    dispatcher: Dispatcher | None = Field(default=None, exclude=True)
    """Keeps the limits, and falls back; default the one that all of the router's wrappers share."""

    def __init__(
        self,
        members: Mapping[str, Runnable[Any, Any] | Callable[..., Any]],
        router: Router,
        policy: Policy | None = None,
        query: QuerySource = None,
        dispatcher: Dispatcher | None = None,
        **kwargs: Any,
    ) -> None:
        """Check that the members are the router's models.

        Raises:
            ConfigError: A model of the router has no member, a member is no model of the router, or the dispatcher is
                another router's.
        """
        router.check_members(members)
        if policy is not None:
            policy.check_models(router.models)
        if dispatcher is not None and dispatcher.router is not router:
            raise ConfigError("dispatcher: it is another router's; give Dispatcher(router) of the same router")
        runnables = {name: coerce_to_runnable(member) for name, member in members.items()}
        own = {"members": runnables, "router": router, "policy": policy, "query": query, "dispatcher": dispatcher}
        super().__init__(**own, **kwargs)

    # -- one input

    @override
    def invoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        return self._call_with_config(_invoked, input, config, calls=self._calls, kwargs=kwargs)

    @override
    async def ainvoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        return await self._acall_with_config(_ainvoked, input, config, calls=self._calls, kwargs=kwargs)

    @override
    def stream(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any | None) -> Iterator[Output]:
        yield from self.transform(iter([input]), config, **kwargs)

    @override
    async def astream(
        self, input: Input, config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Output]:
        async def one() -> AsyncIterator[Input]:
            yield input

        async with aclosing(cast("Any", self.atransform(one(), config, **kwargs))) as chunks:
            async for chunk in chunks:
                yield chunk

    @override
    def transform(
        self, input: Iterator[Input], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> Iterator[Output]:
        yield from self._transform_stream_with_config(input, partial(self._calls.stream, kwargs=kwargs), config)

    @override
    async def atransform(
        self, input: AsyncIterator[Input], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Output]:
        whole = self._atransform_stream_with_config(input, partial(self._calls.astream, kwargs=kwargs), config)
        async with aclosing(cast("Any", whole)) as chunks:
            async for chunk in chunks:
                yield chunk

    # -- many inputs, however asked for

    @override
    def _answers(
        self, inputs: Sequence[Input], config: Configs, kwargs: Mapping[str, Any], *, go_on: bool
    ) -> Iterator[tuple[int, Output | Exception]]:
        """Positions and answers as they come, all decided before the first call."""
        if not inputs:
            return
        configs, most = _configs(config, len(inputs))
        calls = self._calls
        planned = calls.plan(inputs, configs, kwargs)

        def answer(i: int, turn: Turn) -> Output:
            own: dict[str, Any] = {"kwargs": kwargs, "asked": planned[i], "turn": partial(turn, i)}
            return self._call_with_config(_invoked, inputs[i], configs[i], calls=calls, **own)

        with closing(in_threads(_models(planned), most, answer)) as come:
            for i, result in come:
                if isinstance(result, Exception) and not go_on:
                    raise result
                yield i, result

    @override
    async def _aanswers(
        self, inputs: Sequence[Input], config: Configs, kwargs: Mapping[str, Any], *, go_on: bool
    ) -> AsyncGenerator[tuple[int, Output | Exception], None]:
        """As `_answers`."""
        if not inputs:
            return
        configs, most = _configs(config, len(inputs))
        calls = self._calls
        planned = await asyncio.to_thread(calls.plan, inputs, configs, kwargs)

        async def answer(i: int, turn: AsyncTurn) -> Output:
            own: dict[str, Any] = {"kwargs": kwargs, "asked": planned[i], "turn": partial(turn, i)}
            return await self._acall_with_config(_ainvoked, inputs[i], configs[i], calls=calls, **own)

        async with aclosing(in_tasks(_models(planned), most, answer)) as come:
            async for i, result in come:
                if isinstance(result, Exception) and not go_on:
                    raise result
                yield i, result

    @property
    def _calls(self) -> Calls:
        dispatcher = self.dispatcher or Dispatcher.shared(self.router)
        return Calls(self.members, self.router, self.policy, self.query, dispatcher)


# What LangChain calls is one and the same for every input: of anything new it reads the signature, which takes time.


def _invoked(value: Any, config: Any, *, calls: Any = None, **own: Any) -> Any:
    return calls.invoke(value, config, **own)


async def _ainvoked(value: Any, config: Any, *, calls: Any = None, **own: Any) -> Any:
    return await calls.ainvoke(value, config, **own)


def _configs(config: Configs, n: int) -> tuple[list[RunnableConfig], int | None]:
    """One config for each input, and the cap on their calls; each call has its share of it for batches of its own."""
    given = config if config is None or isinstance(config, dict) else list(config)
    configs = get_config_list(given, n)
    if (most := configs[0].get("max_concurrency")) is not None:
        if most < 1:
            raise ConfigError(f"max_concurrency={most}: give at least 1")
        share = most // min(most, n)
        configs = [{**each, "max_concurrency": share} for each in configs]
    return configs, most


def _models(planned: Sequence[Asked | Exception]) -> list[str]:
    """The model of each input; none for an error, which asks nobody."""
    decisions = [None if isinstance(asked, Exception) else asked[1]["decision"] for asked in planned]
    return ["" if decision is None else str(decision.model) for decision in decisions]
