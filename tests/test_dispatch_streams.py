"""Streams through the dispatcher: piece by piece, with another model only before the first piece."""

import asyncio
from contextlib import aclosing

import pytest

from eccos_integrations.serving.dispatch import Dispatcher
from tests.test_dispatch import LONG, USAGE, ApiError, router_of, settled, until


@pytest.fixture(scope="module")
def router():
    return router_of(max_concurrency=1)


@pytest.fixture
def dispatcher(router):
    with Dispatcher(router, window_s=0.0, deadline_s=LONG) as dispatcher:
        yield dispatcher


def pieces_of(fails_at=(), error=None):
    """A function whose first calls fail before the piece of this number, and what it was asked of whom."""
    left, asked = list(fails_at), []

    def function(ticket):
        asked.append(ticket.model)
        failing = left.pop(0) if left else None
        for number in range(3):
            if number == failing:
                raise error or ApiError(500)
            yield f"{ticket.model} {number}"
        ticket.usage = USAGE

    return function, asked


def awaited(function):
    async def pieces(ticket):
        for piece in function(ticket):
            await asyncio.sleep(0)
            yield piece

    return pieces


async def gathered(stream):
    return [piece async for piece in stream]


@pytest.fixture(params=["in a thread", "in an event loop"])
def streamed(request, dispatcher):
    """All pieces of a stream."""

    def stream(function, **options):
        if request.param == "in a thread":
            return list(dispatcher.stream("hello", function, **options))
        return asyncio.run(gathered(dispatcher.astream("hello", awaited(function), **options)))

    return stream


def test_the_pieces_come_in_order_and_what_was_used_is_booked(streamed, dispatcher):
    function, asked = pieces_of()
    assert streamed(function) == ["tiny 0", "tiny 1", "tiny 2"]
    assert asked == ["tiny"]
    settled(dispatcher, dispatcher.ledger)


def test_before_the_first_piece_another_model_takes_over(streamed, dispatcher):
    function, asked = pieces_of(fails_at=[0, 0])
    assert streamed(function) == ["medium 0", "medium 1", "medium 2"]
    assert asked == ["tiny", "small", "medium"]
    settled(dispatcher, dispatcher.ledger)


def test_after_the_first_piece_the_error_is_the_callers(streamed, dispatcher):
    function, asked = pieces_of(fails_at=[1])
    with pytest.raises(ApiError):
        streamed(function)
    assert asked == ["tiny"]
    settled(dispatcher, dispatcher.ledger)


def test_an_error_that_every_model_would_repeat_is_passed_on(streamed, dispatcher):
    function, asked = pieces_of(fails_at=[0], error=ApiError(400))
    with pytest.raises(ApiError):
        streamed(function)
    assert asked == ["tiny"]


def test_who_stops_early_gives_the_model_back(dispatcher):
    stream = dispatcher.stream("hello", pieces_of()[0])
    assert next(stream) == "tiny 0"
    stream.close()
    settled(dispatcher, dispatcher.ledger)


async def test_who_stops_early_in_an_event_loop_gives_it_back_and_ends_the_members_own_stream(dispatcher):
    ended = []

    async def function(ticket):
        try:
            for number in range(3):
                yield number
        finally:
            ended.append(ticket.model)

    async with aclosing(dispatcher.astream("hello", function)) as stream:
        async for piece in stream:
            assert piece == 0
            break
    assert ended == ["tiny"]
    await asyncio.to_thread(settled, dispatcher, dispatcher.ledger)


async def test_who_is_cancelled_within_a_stream_gives_it_back(dispatcher):
    begun = asyncio.Event()

    async def function(ticket):
        yield ticket.model
        begun.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(gathered(dispatcher.astream("hello", function)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(settled, dispatcher, dispatcher.ledger)


def test_a_stream_holds_its_model_until_it_ends(dispatcher):
    first = dispatcher.stream("hello", pieces_of()[0])
    assert next(first) == "tiny 0"
    assert next(dispatcher.stream("hello", pieces_of()[0])) == "small 0"
    assert list(first) == ["tiny 1", "tiny 2"]
    until(lambda: dispatcher.ledger.free().concurrency[0] == 1)
    assert next(dispatcher.stream("hello", pieces_of()[0])) == "tiny 0"
