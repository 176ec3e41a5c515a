"""ECCOS for LangChain: a runnable that routes each input, or a whole batch jointly, among named runnables."""

from langchain_eccos.runnable import RunnableRouter

__all__ = ["RunnableRouter"]
