"""ECCOS for LangChain: a chat model, a runnable and an agent middleware that route calls, one by one or jointly."""

from typing import TYPE_CHECKING, Any

from langchain_eccos.callbacks import EccosCostCallback, get_eccos_cost
from langchain_eccos.chat_model import ChatEccos
from langchain_eccos.runnable import RunnableRouter

if TYPE_CHECKING:
    from langchain_eccos.agent_batch import plan_agent_batch
    from langchain_eccos.middleware import EccosMiddleware

# Looked into when asked for: agents need `langchain`, which chains do without.
_ROOMS = {"EccosMiddleware": "middleware", "plan_agent_batch": "agent_batch"}

__all__ = [
    "ChatEccos",
    "EccosCostCallback",
    "EccosMiddleware",
    "RunnableRouter",
    "get_eccos_cost",
    "plan_agent_batch",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
