"""Writing: the observed cells of a table, row by row or nested by query."""

import csv
import io
import json
import math
from collections.abc import Iterator
from typing import IO

import numpy as np

from eccos_integrations.formats.columns import NUMBER_COLUMNS, Row
from eccos_integrations.outcomes import OutcomeTable


def _rows(table: OutcomeTable) -> Iterator[Row]:
    """The observed cells, one row each, numbers None where not observed."""
    measures = {disk: (getattr(table, name), unit) for disk, (name, unit) in NUMBER_COLUMNS.items()}
    observed = np.any([np.isfinite(array) for array, _ in measures.values()], axis=0)
    for i, j in np.argwhere(observed):
        task = {} if table.tasks is None else {"task": table.tasks[i]}
        yield {
            "query_id": table.query_ids[i],
            **task,
            "query": table.queries[i],
            "model": table.models[j],
            **{name: _value(array[i, j] * unit) for name, (array, unit) in measures.items()},
        }


def _value(number: float) -> float | None:
    return None if math.isnan(number) else float(number)


def write_parquet(table: OutcomeTable, file: IO[bytes]) -> None:
    """A long Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["query_id", *(["task"] if table.tasks is not None else []), "query", "model"]
    types = [(name, pa.large_string()) for name in names] + [(name, pa.float64()) for name in NUMBER_COLUMNS]
    pq.write_table(pa.Table.from_pylist(list(_rows(table)), schema=pa.schema(types)), file)


def write_csv(table: OutcomeTable, file: IO[bytes]) -> None:
    """A long CSV file."""
    rows = list(_rows(table))
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    text.detach()


def _nested(table: OutcomeTable) -> Iterator[tuple[Row, dict[str, Row]]]:
    """Per query: what belongs to the query, and its outcomes by model."""
    by_query: dict[str, tuple[Row, dict[str, Row]]] = {}
    for row in _rows(table):
        shared: Row = {name: row[name] for name in ("query_id", "task", "query") if name in row}
        outcome = {name: row[name] for name in NUMBER_COLUMNS if row[name] is not None}
        by_query.setdefault(row["query_id"], (shared, {}))[1][row["model"]] = outcome
    yield from by_query.values()


def write_jsonl(table: OutcomeTable, file: IO[bytes]) -> None:
    """JSON lines, one query with its outcomes by model each."""
    for shared, outcomes in _nested(table):
        file.write(json.dumps({**shared, "outcomes": outcomes}, ensure_ascii=False).encode() + b"\n")


def write_qaserve(table: OutcomeTable, file: IO[bytes]) -> None:
    """The records of QAServe, as one JSON array."""
    records = []
    for shared, outcomes in _nested(table):
        outputs = [_qaserve_output(model, outcome) for model, outcome in outcomes.items()]
        lengths = [outcome["input_tokens"] for outcome in outcomes.values() if "input_tokens" in outcome]
        records.append({**shared, "input_token_length": max(lengths, default=None), "outputs": outputs})
    file.write(json.dumps(records, ensure_ascii=False, indent=1).encode())


def _qaserve_output(model: str, outcome: Row) -> Row:
    correctness = outcome.get("correctness")
    named = {
        "model_name": model,
        "correctness": bool(correctness) if correctness in (0, 1) else correctness,
        "output_token_length": outcome.get("output_tokens"),
        "prediction": "",  # answers are not kept in a table
        "cost_usd": outcome.get("cost_usd"),
        "latency_ms": outcome.get("latency_ms"),
    }
    observed = {name: value for name, value in named.items() if value is not None}
    # Written even where unknown: left out, a reader would take the record's own.
    return {**observed, "input_token_length": outcome.get("input_tokens")}
