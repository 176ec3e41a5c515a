"""Agents over fake models, and a router that sends them where a test can say beforehand: for `EccosMiddleware`."""

from functools import cache

import numpy as np
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from eccos_integrations import Model, ModelPool, OutcomeTable, Policy
from langchain_eccos.middleware import EccosMiddleware
from tests.fake_chat import FakeChat
from tests.langchain_router import MODELS, USD_PER_MILLION, SpyRouter, at_once

EASY, HARD = "add up these numbers", "prove this theorem"
TEXTS = [f"{text} again" for text in [EASY, HARD, EASY, HARD, "explain it"] for _ in range(40)]


def router_of(**limits):
    """Whoever is asked to add goes to the small model, whoever is asked to prove goes to the large one."""
    return SpyRouter(_learnt(tuple((field, tuple(by_name.items())) for field, by_name in limits.items())))


@cache
def _learnt(limits):
    kinds = ["add", "prove", "explain"]
    good = {"add": [1.0, 1.0, 1.0], "prove": [0.0, 0.0, 1.0], "explain": [0.5, 0.5, 1.0]}
    tokens = np.full((len(TEXTS), 3), 5000.0)  # beside which no prompt of a test weighs anything
    table = OutcomeTable(
        [str(i) for i in range(len(TEXTS))],
        [f"{text} {i}" for i, text in enumerate(TEXTS)],
        MODELS,
        np.array([good[text.split()[0]] for text in TEXTS]),
        cost_usd=tokens * list(USD_PER_MILLION.values()) / 1e6,
        output_tokens=tokens,
        input_tokens=tokens * 0,
    )
    pool = ModelPool([
        Model(name=name, input_usd_per_million_tokens=usd, output_usd_per_million_tokens=usd,
              **{field: dict(by_name).get(name) for field, by_name in limits})
        for name, usd in USD_PER_MILLION.items()
    ])  # fmt: skip
    router = SpyRouter.fit(
        table, pool=pool, policy=Policy(min_quality=0.92), predictor="retrieval",
        encoder=lambda texts: np.array([[kind in text for kind in kinds] for text in texts], dtype=float),
    )  # fmt: skip
    return router._learnt


@tool
def look_up(word: str) -> str:
    """Find out about a word."""
    return f"all about {word}"


def fakes(**fields):
    return {name: FakeChat(model_name=name, **fields) for name in MODELS}


def middleware_of(members=None, router=None, policy=None, **settings):
    router = router_of() if router is None else router
    settings.setdefault("dispatcher", at_once(router))
    return EccosMiddleware(fakes() if members is None else members, router, policy, **settings)


def agent_of(*middleware, tools=(look_up,), model=None, **settings):
    """An agent that ends, and whose own model must not be called."""
    if model is None:
        model = FakeChat(model_name="the agent's own", fail=AssertionError("called"))
    return create_agent(model, list(tools), middleware=middleware, **settings).with_config(recursion_limit=25)


def ask(agent, text="a question", **configurable):
    return agent.invoke({"messages": [text]}, {"configurable": configurable})["messages"]


async def ask_either_way(agent, *, asynchronous):
    value = {"messages": ["a question"]}
    return (await agent.ainvoke(value) if asynchronous else agent.invoke(value))["messages"]


def answers(messages):
    return [message for message in messages if isinstance(message, AIMessage)]


def names(messages):
    """Who answered."""
    return [answer.response_metadata["model_name"] for answer in answers(messages)]


def told(messages):
    """Who was decided for each answer, None where nothing says so."""
    return [answer.response_metadata.get("eccos", {}).get("model") for answer in answers(messages)]


def models(messages):
    """Who was decided for each answer, which is who answered."""
    assert names(messages) == told(messages)
    return names(messages)
