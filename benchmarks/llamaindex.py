"""What routing adds to LlamaIndex's calls, forecast included: `eccos bench llamaindex`."""

import json
from typing import Any

from llama_index.core.llms import ChatMessage, MockLLM
from rich.console import Console
from rich.table import Table

from benchmarks.wrapper_parts.overhead import aadded_ms, added_ms, import_s, run, serving
from llamaindex_eccos import EccosLLM


def measure() -> dict[str, Any]:
    """All figures."""
    router, dispatcher, queries = serving()
    n = len(queries)
    members = {name: MockLLM() for name in router.models}
    llm, member = EccosLLM(members=members, router=router, dispatcher=dispatcher), members[router.best]
    found: dict[str, Any] = {
        "complete": added_ms(
            lambda k: member.complete(queries[k % n]),
            lambda k: llm.complete(queries[k % n]),
        ),
        "acomplete": run(
            aadded_ms(lambda k: member.acomplete(queries[k % n]), lambda k: llm.acomplete(queries[k % n]))
        ),
        "achat": run(
            aadded_ms(
                lambda k: member.achat([ChatMessage(queries[k % n])]),
                lambda k: llm.achat([ChatMessage(queries[k % n])]),
            )
        ),
        "import llamaindex_eccos": {"s": import_s("llamaindex_eccos")},
    }
    dispatcher.close()
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
