"""Reading: every format becomes rows, and rows become arrays in one place."""

import csv
import gzip
import io
import json
import logging
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from eccos_integrations.errors import DataError
from eccos_integrations.formats.columns import IGNORED, NUMBER_COLUMNS, REQUIRED, TEXT_COLUMNS, Row
from eccos_integrations.outcomes import MEASURES

logger = logging.getLogger("eccos")


def read_parquet(path: Path) -> Iterable[Row]:
    """Rows of a long Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = _known_columns(pq.read_schema(path).names)
        return _arrow_rows(pq.read_table(path, columns=columns))
    except pa.ArrowException as error:
        raise DataError(f"not a readable Parquet file ({type(error).__name__}); check that it is complete") from None


def read_csv(path: Path) -> Iterable[Row]:
    """Rows of a long CSV file, packed or not."""
    with _opened(path) as file:
        csv.field_size_limit(2**31 - 1)
        rows = csv.DictReader(file, strict=True)
        columns = _known_columns(rows.fieldnames or [])
        # An empty text is a text; an empty number was not observed.
        kept = [*TEXT_COLUMNS, "task"]
        for number, row in enumerate(rows, start=1):
            if None in row or None in row.values():
                raise DataError(f"row {number}: not as many cells as the header has; quote texts that hold commas")
            yield {name: row[name] for name in columns if row[name] or name in kept}


def read_jsonl(path: Path) -> Iterable[Row]:
    """Rows of JSON lines, one query with its outcomes by model each."""
    for number, record in _json_lines(path):
        if not isinstance(record, dict) or not isinstance(record.get("outcomes"), dict):
            raise DataError(f"line {number}: expected an object with query_id, query and outcomes by model")
        shared = {name: record.get(name) for name in ("query_id", "query", "task") if record.get(name) is not None}
        for model, outcome in record["outcomes"].items():
            if not isinstance(outcome, dict):
                raise DataError(f"line {number}: the outcome of {model!r} is not an object; give {{}} if unknown")
            yield {**shared, "model": model, **{name: outcome.get(name) for name in NUMBER_COLUMNS}}


def read_qaserve(path: Path) -> Iterable[Row]:
    """Records {query, input_token_length, outputs: [{model_name, correctness, output_token_length}]}.

    Source: the loader in AIOS (agiresearch/AIOS, aios/llm_core/routing.py). `query_id`, `task`, and per output
    `cost_usd`, `latency_ms` and `input_token_length` are ours: read where present, ignored by other readers.
    """
    for number, record in _json_records(path):
        if not isinstance(record, dict) or "query" not in record or not isinstance(record.get("outputs"), list):
            raise DataError(f"record {number}: expected an object with query, input_token_length and outputs")
        for output in record["outputs"]:
            if not isinstance(output, dict) or "model_name" not in output:
                raise DataError(f"record {number}: an output is not an object with model_name and correctness")
            row = {
                "query_id": str(record.get("query_id", number)),
                "query": record["query"],
                "model": output["model_name"],
                "correctness": output.get("correctness"),
                "input_tokens": output.get("input_token_length", record.get("input_token_length")),
                "output_tokens": output.get("output_token_length"),
                "cost_usd": output.get("cost_usd"),
                "latency_ms": output.get("latency_ms"),
            }
            yield row if record.get("task") is None else {**row, "task": record["task"]}


def _opened(path: Path) -> IO[str]:
    file: Any = gzip.open(path) if path.name.endswith(".gz") else path.open("rb")  # noqa: SIM115  # closed with the text
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, if no key stands twice in it: of two outcomes of one model neither is silently lost."""
    record = dict(pairs)
    if len(record) != len(pairs):
        raise DataError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} stands twice in one object")
    return record


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line, object_pairs_hook=_distinct)
                except (json.JSONDecodeError, RecursionError):
                    raise DataError(f"line {number}: not valid JSON; the file may be cut off") from None


def _json_records(path: Path) -> Iterator[tuple[int, Any]]:
    """The records of a JSON array, or of JSON lines where the file does not start with one."""
    with _opened(path) as file:
        text = file.read()
    if not text.lstrip().startswith("["):
        yield from _json_lines(path)
        return
    try:
        yield from enumerate(json.loads(text, object_pairs_hook=_distinct), start=1)
    except (json.JSONDecodeError, RecursionError):
        raise DataError("not valid JSON; the file may be cut off") from None


def _known_columns(names: Iterable[str]) -> list[str]:
    names = list(names)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DataError(f"columns {missing} are missing; a long table has {list(REQUIRED)} and may have "
                        f"{['task', *list(NUMBER_COLUMNS)[1:]]}; check that the file has a header")  # fmt: skip
    known = {*TEXT_COLUMNS, *NUMBER_COLUMNS, "task"}
    if repeated := [name for name, times in Counter(names).items() if times > 1 and name in known]:
        raise DataError(f"columns {repeated} stand twice; keep one of each")
    if unknown := [name for name in names if name not in known | IGNORED]:
        logger.warning("columns %s are not known and were ignored", unknown)
    return [name for name in names if name in known]


def _arrow_rows(table: Any) -> Iterator[Row]:
    columns = {name: _values(table.column(name)) for name in table.column_names}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _values(column: Any) -> list[Any]:
    """A column's values; equal texts are one object, of which a long table has many."""
    import pyarrow as pa

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        values: list[Any] = column.to_pylist()
        return values
    encoded = column.combine_chunks().dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    return [None if code is None else distinct[code] for code in encoded.indices.to_pylist()]


def pivot(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows into the arguments of `OutcomeTable`; one clear error at the first row that breaks a rule."""
    row_of: dict[str, int] = {}
    column_of: dict[str, int] = {}
    queries: list[str] = []
    tasks: list[str | None] = []
    cells: set[tuple[int, int]] = set()
    positions, numbers = array("q"), array("d")  # flat: a large table has millions
    for number, row in enumerate(rows, start=1):
        query_id, query, model = (_text(row, name, number) for name in TEXT_COLUMNS)
        i = row_of.setdefault(query_id, len(row_of))
        if i == len(queries):
            queries.append(query)
            tasks.append(None if row.get("task") is None else str(row["task"]))
        elif queries[i] != query:
            raise DataError(f"query_id {query_id!r} has two different texts; give each text an id of its own")
        j = column_of.setdefault(model, len(column_of))
        if (i, j) in cells:
            raise DataError(f"query_id {query_id!r}, model {model!r}: two rows; keep one outcome per query and model")
        where = f"query_id {query_id!r}, model {model!r}"
        cells.add((i, j))
        positions.extend((i, j))
        numbers.extend(_number(row.get(name), name, where) / unit for name, (_, unit) in NUMBER_COLUMNS.items())
    if not cells:
        raise DataError("the outcome table is empty; it needs at least one row")
    at = np.array(positions).reshape(-1, 2)
    values = np.array(numbers).reshape(len(at), -1)
    measures = {}
    for k, (name, _) in enumerate(NUMBER_COLUMNS.values()):
        measures[name] = np.full((len(row_of), len(column_of)), np.nan)
        measures[name][at[:, 0], at[:, 1]] = values[:, k]
    if np.isnan(measures["quality"]).all():
        raise DataError("correctness: no outcome was observed; the table needs at least one")
    known_tasks = [task or "" for task in tasks] if any(task is not None for task in tasks) else None
    return {
        "query_ids": list(row_of),
        "queries": queries,
        "models": list(column_of),
        "tasks": known_tasks,
        **measures,
    }


def _text(row: Row, name: str, number: int) -> str:
    value = row.get(name)
    if not isinstance(value, str) or (not value and name != "query"):
        raise DataError(
            f"{name}: row {number} has {'none' if value in (None, '') else f'a {type(value).__name__}'}; give a string"
        )
    return value


def _number(value: Any, name: str, where: str) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{name}: {str(value)[:40]!r} for {where} is not a number; leave it empty if unknown") from None
    if math.isnan(number):
        raise DataError(f"{name}: NaN for {where} is not a number; leave the cell empty (null) if it was not observed")
    most = MEASURES[NUMBER_COLUMNS[name][0]]
    if not (0 <= number <= most and math.isfinite(number)):
        rule = "between 0 and 1" if most == 1 else "finite and not negative"
        raise DataError(f"{name}: {number:g} for {where}; it must be {rule}, or empty if it was not observed")
    return number
