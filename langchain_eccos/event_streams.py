"""Protocol events (version 3) of a member, as a stream of the router's own."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from langchain_core.language_models.chat_model_stream import AsyncChatModelStream, ChatModelStream


def pumped(events: Iterator[Any]) -> ChatModelStream:
    """A stream that takes its events as it is read."""
    stream = ChatModelStream()

    def pump() -> bool:
        try:
            event = next(events, None)
            if event is None:
                return False
            if event["event"] == "message-finish":
                deque(events, maxlen=0)  # the run ends first: nobody reads on after this
        except BaseException as error:  # raised again by who reads; an exit at once
            stream.fail(error)
            if not isinstance(error, Exception):
                raise
            return False
        stream.dispatch(event)
        return True

    stream.bind_pump(pump)
    return stream


async def pulled(events: AsyncGenerator[Any, None]) -> AsyncChatModelStream:
    """As `pumped`."""
    return _Pulled(events)


class _Pulled(AsyncChatModelStream):
    """Closed early, it closes what it reads from."""

    def __init__(self, events: AsyncGenerator[Any, None]) -> None:
        super().__init__()
        self._source, self._turn = events, asyncio.Lock()
        self.set_arequest_more(self._pump)

    async def _pump(self) -> bool:
        async with self._turn:  # projections may be read at the same time
            try:
                event = await anext(self._source, None)
                if event is None:
                    return False
                if event["event"] == "message-finish":
                    async for _ in self._source:  # the run ends first: nobody reads on after this
                        pass
            except BaseException as error:  # raised again by who reads; a cancellation at once
                self.fail(error)
                if not isinstance(error, Exception):
                    raise
                return False
            self.dispatch(event)
            return True

    async def aclose(self) -> None:
        async with self._turn:
            await self._source.aclose()
        if not self.done:
            self.fail(asyncio.CancelledError())
