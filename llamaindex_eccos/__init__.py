"""ECCOS for LlamaIndex: an LLM that picks, call by call, which model of a pool answers."""

from llamaindex_eccos.llm import EccosLLM

__all__ = ["EccosLLM"]
