"""`plan_agent_batch`: whole runs of an agent, decided in one joint solve."""

import asyncio

import pytest

from eccos_integrations import ConfigError, NoCapacityError, Policy
from langchain_eccos.agent_batch import plan_agent_batch
from langchain_eccos.callbacks import get_eccos_cost
from tests.langchain_agents import EASY, HARD, TEXTS, agent_of, ask, middleware_of, models, router_of
from tests.langchain_router import MODELS


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_batch_of_runs_is_one_joint_solve_and_each_run_stays_with_its_model(asynchronous):
    router = router_of()
    middleware = middleware_of(router=router)
    agent = agent_of(middleware)
    inputs = [{"messages": [text]} for text in TEXTS[::10]]
    configs = await asyncio.to_thread(plan_agent_batch, middleware, inputs)
    assert router.planned == [len(inputs)]
    answers = await agent.abatch(inputs, configs) if asynchronous else agent.batch(inputs, configs)
    assert router.planned == [len(inputs)]
    assert {config["configurable"]["eccos_model"] for config in configs} == {"small", "large"}
    for config, answer in zip(configs, answers, strict=True):
        planned = config["configurable"]
        assert models(answer["messages"]) == [planned["eccos_model"]] * 2
        told = answer["messages"][-1].response_metadata["eccos"]
        assert told["decision_id"] == planned["eccos_decision"]["decision_id"]


def test_a_planned_run_leaves_its_model_only_where_that_fails_and_then_stays_with_the_other():
    middleware = middleware_of(policy=Policy(min_quality=0.5))
    middleware.members["small"].fail = ConnectionError()
    inputs = [{"messages": [EASY]}]
    configs = plan_agent_batch(middleware, inputs)
    assert configs[0]["configurable"]["eccos_model"] == "small"
    with get_eccos_cost(middleware.router) as cost:
        first, second = models(agent_of(middleware).batch(inputs, configs)[0]["messages"])
    assert first == second != "small"
    assert set(cost.by_model) == {second}  # whatever the plan in the config says


def test_what_stands_in_the_configs_of_a_batch_stays_there():
    router = router_of()
    middleware = middleware_of(router=router)
    own = [{"configurable": {"eccos_model": "medium"}, "tags": ["mine"]}, {"configurable": {"thread_id": "t"}}]
    pinned, planned = plan_agent_batch(middleware, [{"messages": EASY}, {"messages": [("user", HARD)]}], own)
    assert router.planned == [2]
    assert (pinned["configurable"], pinned["tags"]) == ({"eccos_model": "medium"}, ["mine"])
    assert (planned["configurable"]["thread_id"], planned["configurable"]["eccos_model"]) == ("t", "large")
    assert own[1] == {"configurable": {"thread_id": "t"}}
    assert plan_agent_batch(middleware, []) == []


def test_a_batch_that_does_not_fit_or_has_no_messages_is_refused_before_anything_is_paid():
    middleware = middleware_of(policy=Policy(capacity=dict.fromkeys(MODELS, 1)))
    with pytest.raises(NoCapacityError, match="raise it, or send fewer"):
        plan_agent_batch(middleware, [{"messages": [EASY]}] * 4)
    for value in (EASY, {"messages": []}, None):
        with pytest.raises(ConfigError, match="without messages"):
            plan_agent_batch(middleware, [value])


def test_a_plan_that_somebody_has_spoilt_is_refused():
    with pytest.raises(ConfigError, match="pass its configs on as they are"):
        ask(agent_of(middleware_of()), EASY, eccos_model="small", eccos_decision={"model": "small"})
