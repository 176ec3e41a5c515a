"""Batches over LlamaIndex: one joint solve for the lot, answers in order, errors one by one, limits kept."""

import asyncio

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import ChatMessage, MockLLM

from eccos_integrations import ConfigError, Policy
from eccos_integrations.errors import NoCapacityError
from llamaindex_eccos.batch import achat_batch, acomplete_batch, chat_batch, complete_batch, query_batch
from llamaindex_eccos.decisions import PLANNED
from tests.llamaindex_batches import (
    CHEAPEST,
    PROOFS,
    SUMS,
    answered,
    chat_of,
    counted_plans,
    engine_of,
    fit,
    llm_of,
    model_of,
    words_of,
)

each_kind = pytest.mark.parametrize("kind", ["query", "chat", "complete"])
each_how = pytest.mark.parametrize("how", ["sync", "async"])


@pytest.fixture(scope="module")
def router():
    return fit()


@pytest.fixture(scope="module")
def twin():
    """A router that knows the same, and is asked for what to expect."""
    return fit()


@pytest.fixture
def sizes(router, monkeypatch):
    """Of the batches that the router plans."""
    return counted_plans(router, monkeypatch)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("IS_TESTING", "1")
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    monkeypatch.setattr(Settings, "_embed_model", MockEmbedding(embed_dim=8))
    monkeypatch.setattr(Settings, "_callback_manager", None)


# -- one joint solve


@each_kind
@each_how
async def test_a_batch_is_one_solve_and_its_answers_are_in_order(router, twin, sizes, kind, how):
    llm, _ = llm_of(router)
    texts = [*SUMS, *PROOFS]
    answers = await answered(kind, how, llm, texts)
    assert sizes == [12]
    assert all(text in words_of(answer) for text, answer in zip(texts, answers, strict=True))
    models = [model_of(answer) for answer in answers]
    assert models == twin.plan(texts).models
    assert set(models) == {"large", "small"}


@each_kind
@each_how
async def test_what_only_a_joint_solve_can_keep_is_kept(router, sizes, kind, how):
    """Each query by itself would go to the cheapest; a plan may send it three of them."""
    llm, members = llm_of(router, Policy(min_quality=0.0, capacity={"small": 3}))
    answers = await answered(kind, how, llm, SUMS)
    assert sizes == [8]
    assert [model_of(answer) for answer in answers].count("small") == 3
    assert len(members["small"]._asked) == 3


@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_each_answer_carries_its_planned_decision(router, kind):
    llm, _ = llm_of(router)
    answers = await answered(kind, "async", llm, SUMS)
    told = [answer.additional_kwargs["eccos"] for answer in answers]
    assert {each["reason"] for each in told} == {"planned jointly, 8 queries in one solve"}
    for each in told:
        router.feedback(each["decision_id"], latency_s=1.0)
    assert len({each["decision_id"] for each in told}) == 8


async def test_settings_of_the_calls_are_settings_of_the_plan(router, sizes):
    llm, _ = llm_of(router)
    pinned = await acomplete_batch(llm, SUMS, eccos_model="large")
    floored = await achat_batch(llm, [chat_of(text) for text in PROOFS], eccos_min_quality=0.0)
    assert {model_of(answer) for answer in pinned} == {"large"}
    assert {model_of(answer) for answer in floored} == {"small"}
    assert sizes == [8, 4]


async def test_a_chat_is_planned_for_a_member_that_can_read_it(monkeypatch):
    router = fit(vision=False)
    sizes = counted_plans(router, monkeypatch)
    llm, _ = llm_of(router, Policy(min_quality=0.0, capacity={"large": 2}))
    picture = [ChatMessage(blocks=[TextBlock(text=SUMS[0]), ImageBlock(image=b"\x89PNG")])]
    chats = [chat_of(SUMS[1]), picture, chat_of(SUMS[2]), picture]
    answers = await achat_batch(llm, chats)
    assert sizes == [4]
    assert [model_of(answer) for answer in answers] == ["small", "large", "small", "large"]
    told = [answer.additional_kwargs["eccos"]["reason"] for answer in answers]
    assert told == ["planned jointly, 4 queries in one solve"] * 4


async def test_a_chat_that_no_member_can_take_is_an_error_of_its_own(monkeypatch):
    router = fit()
    sizes = counted_plans(router, monkeypatch)
    llm, members = llm_of(router, CHEAPEST)
    too_long = [ChatMessage("x" * 40_000)]
    chats = [chat_of(SUMS[0]), too_long, chat_of(SUMS[1])]
    answers = await achat_batch(llm, chats, return_exceptions=True)
    assert sizes == [2]
    assert isinstance(answers[1], ConfigError)
    assert [model_of(answers[i]) for i in (0, 2)] == ["small", "small"]
    with pytest.raises(ConfigError, match="none can take this call"):
        await achat_batch(llm, chats)
    assert len(members["small"]._asked) == 2


@each_kind
@each_how
async def test_an_empty_batch_is_an_empty_list_and_nothing_is_solved(router, sizes, kind, how):
    llm, _ = llm_of(router)
    assert await answered(kind, how, llm, []) == []
    assert sizes == []


async def test_after_a_batch_calls_are_decided_anew(router):
    llm, _ = llm_of(router)
    await acomplete_batch(llm, PROOFS)
    assert PLANNED.get() is None
    assert model_of(await llm.acomplete(SUMS[0])) == "small"


# -- errors


@each_kind
@each_how
async def test_an_error_takes_the_place_of_its_answer_where_asked_for(router, kind, how):
    llm, _ = llm_of(router, CHEAPEST, poison=SUMS[2])
    answers = await answered(kind, how, llm, SUMS[:4], return_exceptions=True)
    assert isinstance(answers[2], LookupError)
    assert [model_of(answers[i]) for i in (0, 1, 3)] == ["small"] * 3


@each_kind
@each_how
async def test_otherwise_the_first_error_is_raised_and_the_rest_is_stopped(router, kind, how):
    llm, members = llm_of(router, poison=SUMS[0])
    with pytest.raises(LookupError, match="told to fail"):
        await answered(kind, how, llm, SUMS, num_workers=1)
    assert sum(len(member._ended) for member in members.values()) < 7


@each_kind
async def test_a_runtime_error_of_a_member_arrives_as_it_is(router, kind):
    llm, _ = llm_of(router, poison=SUMS[0], error=RuntimeError)
    with pytest.raises(RuntimeError, match="told to fail"):
        await answered(kind, "sync", llm, SUMS)


@each_kind
@each_how
async def test_what_the_policys_capacity_leaves_out_is_an_error_of_its_own(router, kind, how):
    llm, members = llm_of(router, Policy(min_quality=0.0, capacity={"small": 3, "large": 2}))
    with pytest.raises(NoCapacityError, match="3 of 8 have no place: the policy's capacity"):
        await answered(kind, how, llm, SUMS)
    assert not members["small"]._asked
    assert not members["large"]._asked
    answers = await answered(kind, how, llm, SUMS, return_exceptions=True)
    assert sum(isinstance(answer, NoCapacityError) for answer in answers) == 3
    assert (len(members["small"]._asked), len(members["large"]._asked)) == (3, 2)


async def test_a_cancelled_batch_cancels_its_calls(router):
    llm, members = llm_of(router, CHEAPEST, delay_s=60.0)
    batch = asyncio.create_task(acomplete_batch(llm, SUMS))
    async with asyncio.timeout(20):
        while members["small"]._busy < 8:  # noqa: ASYNC110  # an event would have to count
            await asyncio.sleep(0.01)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert members["small"]._busy == 0


# -- how many at once


@each_kind
@each_how
@pytest.mark.parametrize(("num_workers", "peak"), [(1, 1), (3, 3), (None, 8)])
async def test_no_more_are_under_way_than_workers(router, kind, how, num_workers, peak):
    llm, members = llm_of(router, CHEAPEST, delay_s=0.02)
    await answered(kind, how, llm, SUMS, num_workers=num_workers)
    if num_workers is None:
        assert 1 < members["small"]._peak <= peak
    else:
        assert members["small"]._peak == peak


async def test_limits_hold_whatever_the_workers():
    llm, members = llm_of(fit(max_concurrency=2), Policy(min_quality=0.0), delay_s=0.02)
    answers = await acomplete_batch(llm, SUMS)
    assert [model_of(answer) for answer in answers] == ["small"] * 8
    assert members["small"]._peak == 2


@pytest.mark.parametrize("num_workers", [0, -1])
async def test_no_workers_are_refused(router, num_workers):
    with pytest.raises(ConfigError, match=f"num_workers={num_workers}: give"):
        await acomplete_batch(llm_of(router)[0], SUMS, num_workers=num_workers)


async def test_progress_is_shown_only_where_asked_for(router, capsys):
    llm, _ = llm_of(router)
    await acomplete_batch(llm, SUMS)
    assert capsys.readouterr().err == ""
    await acomplete_batch(llm, SUMS, show_progress=True)
    assert "8/8" in capsys.readouterr().err


@each_kind
async def test_the_synchronous_functions_work_in_a_running_loop(router, sizes, kind):
    llm, _ = llm_of(router, CHEAPEST)
    if kind == "query":
        answers = query_batch(engine_of(llm), SUMS)
    elif kind == "chat":
        answers = chat_batch(llm, [chat_of(text) for text in SUMS])
    else:
        answers = complete_batch(llm, SUMS)
    assert [model_of(answer) for answer in answers] == ["small"] * 8
    assert sizes == [8]


async def test_a_loop_is_not_stopped_while_its_own_calls_take_up_the_limits():
    router = fit(max_concurrency=1)
    llm, members = llm_of(router, CHEAPEST, delay_s=0.2)
    call = asyncio.create_task(llm.acomplete(SUMS[0]))
    async with asyncio.timeout(20):
        while not members["small"]._busy:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(ConfigError, match="await the asynchronous function"):
        complete_batch(llm, SUMS[:2])
    assert model_of(await call) == "small"
    assert [model_of(answer) for answer in complete_batch(llm, SUMS[:2])] == ["small", "small"]
