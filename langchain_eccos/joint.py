"""Batches that are decided in one joint solve, whichever way they are asked for."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, overload

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.utils import Input, Output
from typing_extensions import override

Configs = RunnableConfig | Sequence[RunnableConfig] | None


class JointBatches(Runnable[Input, Output]):
    """The four ways to ask for a batch, for a runnable that says how its answers come."""

    @abstractmethod
    def _answers(
        self, inputs: Sequence[Input], config: Configs, kwargs: Mapping[str, Any], *, go_on: bool
    ) -> Iterator[tuple[int, Output | Exception]]:
        """Positions and answers as they come; all is decided before the first call.

        Args:
            inputs: The batch.
            config: For all, or one each.
            kwargs: For the members.
            go_on: Whether an error is the answer of its input; else it is raised.
        """

    @abstractmethod
    def _aanswers(
        self, inputs: Sequence[Input], config: Configs, kwargs: Mapping[str, Any], *, go_on: bool
    ) -> AsyncGenerator[tuple[int, Output | Exception], None]:
        """As `_answers`."""

    @override
    def batch(
        self,
        inputs: list[Input],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Output]:
        answers: Any = dict(self._answers(inputs, config, kwargs, go_on=return_exceptions))
        return [answers[i] for i in range(len(inputs))]

    @override
    async def abatch(
        self,
        inputs: list[Input],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Output]:
        answers: Any = {i: one async for i, one in self._aanswers(inputs, config, kwargs, go_on=return_exceptions)}
        return [answers[i] for i in range(len(inputs))]

    @overload
    def batch_as_completed(
        self,
        inputs: Sequence[Input],
        config: Configs = None,
        *,
        return_exceptions: Literal[False] = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Output]]: ...

    @overload
    def batch_as_completed(
        self,
        inputs: Sequence[Input],
        config: Configs = None,
        *,
        return_exceptions: Literal[True],
        **kwargs: Any,
    ) -> Iterator[tuple[int, Output | Exception]]: ...

    @override
    def batch_as_completed(
        self,
        inputs: Sequence[Input],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> Iterator[tuple[int, Output | Exception]]:
        yield from self._answers(inputs, config, kwargs, go_on=return_exceptions)

    @overload
    def abatch_as_completed(
        self,
        inputs: Sequence[Input],
        config: Configs = None,
        *,
        return_exceptions: Literal[False] = False,
        **kwargs: Any | None,
    ) -> AsyncIterator[tuple[int, Output]]: ...

    @overload
    def abatch_as_completed(
        self,
        inputs: Sequence[Input],
        config: Configs = None,
        *,
        return_exceptions: Literal[True],
        **kwargs: Any | None,
    ) -> AsyncIterator[tuple[int, Output | Exception]]: ...

    @override
    async def abatch_as_completed(
        self,
        inputs: Sequence[Input],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> AsyncIterator[tuple[int, Output | Exception]]:
        async with aclosing(self._aanswers(inputs, config, kwargs, go_on=return_exceptions)) as answers:
            async for each in answers:
                yield each
