"""ECCOS for LlamaIndex: an LLM and a selector that choose the model, call by call or for a whole batch jointly."""

from llamaindex_eccos.batch import achat_batch, acomplete_batch, aquery_batch, chat_batch, complete_batch, query_batch
from llamaindex_eccos.events import EccosRouteEvent
from llamaindex_eccos.llm import EccosLLM
from llamaindex_eccos.selector import EccosSelector, EccosSelectorResult, build_query_engine_tools

__all__ = [
    "EccosLLM",
    "EccosRouteEvent",
    "EccosSelector",
    "EccosSelectorResult",
    "achat_batch",
    "acomplete_batch",
    "aquery_batch",
    "build_query_engine_tools",
    "chat_batch",
    "complete_batch",
    "query_batch",
]
