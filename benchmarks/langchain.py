"""What routing adds to LangChain's calls, forecast included: `eccos bench langchain`."""

import json
from typing import Any

from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda
from rich.console import Console
from rich.table import Table

from benchmarks.wrapper_parts.overhead import aadded_ms, added_ms, import_s, run, seconds, serving
from langchain_eccos import ChatEccos, RunnableRouter

BATCH = 1000


def measure() -> dict[str, Any]:
    """All figures."""
    router, dispatcher, queries = serving()
    n, best = len(queries), router.best
    lambdas: dict[str, Any] = {name: RunnableLambda(lambda text: text) for name in router.models}
    chats: dict[str, Any] = {name: FakeListChatModel(responses=["yes"]) for name in router.models}
    batch = (queries * (BATCH // n + 1))[:BATCH]
    found: dict[str, Any] = {}
    for name, wrapper, member in (
        ("RunnableRouter", RunnableRouter(lambdas, router, dispatcher=dispatcher), lambdas[best]),
        ("ChatEccos", ChatEccos(chats, router, dispatcher=dispatcher), chats[best]),
    ):
        found[f"{name}.invoke"] = added_ms(
            lambda k, member=member: member.invoke(queries[k % n]),  # type: ignore[misc]
            lambda k, wrapper=wrapper: wrapper.invoke(queries[k % n]),  # type: ignore[misc]
        )
        found[f"{name}.ainvoke"] = run(
            aadded_ms(
                lambda k, member=member: member.ainvoke(queries[k % n]),  # type: ignore[misc]
                lambda k, wrapper=wrapper: wrapper.ainvoke(queries[k % n]),  # type: ignore[misc]
            )
        )
        found[f"{name}.stream"] = added_ms(
            lambda k, member=member: list(member.stream(queries[k % n])),  # type: ignore[misc]
            lambda k, wrapper=wrapper: list(wrapper.stream(queries[k % n])),  # type: ignore[misc]
        )
        direct_s, routed_s = seconds(lambda: member.batch(batch)), seconds(lambda: wrapper.batch(batch))  # noqa: B023
        found[f"{name}.batch of {BATCH}"] = {
            "direct_s": round(direct_s, 3), "routed_s": round(routed_s, 3), "added_s": round(routed_s - direct_s, 3),
        }  # fmt: skip
    dispatcher.close()
    found["import langchain_eccos"] = {"s": import_s("langchain_eccos")}
    return found


def main(*, as_json: bool = False) -> None:
    """Measure and report."""
    found = measure()
    if as_json:
        print(json.dumps(found))
        return
    table = Table("call", "figures", title="what routing adds, window 0")
    for name, figures in found.items():
        table.add_row(name, ", ".join(f"{key} {value}" for key, value in figures.items()))
    Console().print(table)


if __name__ == "__main__":
    main()
