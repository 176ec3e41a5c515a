"""Outcome tables on disk: long Parquet or CSV, nested JSON lines, and the records of QAServe."""

import csv
import gzip
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast, get_args

from eccos_integrations.errors import DataError
from eccos_integrations.formats import reading, writing
from eccos_integrations.formats.columns import Row
from eccos_integrations.outcomes import Format, OutcomeTable

SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".json": "qaserve",
}


def read_columns(path: Path, format: Format | None) -> dict[str, Any]:  # the public name
    """The arguments of `OutcomeTable` from a file; see `OutcomeTable.read`."""
    reader: dict[Format, Callable[[Path], Iterable[Row]]] = {
        "parquet": reading.read_parquet,
        "csv": reading.read_csv,
        "jsonl": reading.read_jsonl,
        "qaserve": reading.read_qaserve,
    }
    chosen = _format(path, format)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return reading.pivot(reader[chosen](path))
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        # The parsers' own words may quote the file's text, prompts included: only the kind of error is passed on.
        raise DataError(f"{path.name}: not readable as {chosen} ({type(error).__name__}); check the file") from None


def write_table(table: OutcomeTable, path: Path, format: Format | None) -> None:  # the public name
    """Write the table whole or not at all; see `OutcomeTable.write`."""
    writer: dict[Format, Callable[[OutcomeTable, IO[bytes]], None]] = {
        "parquet": writing.write_parquet,
        "csv": writing.write_csv,
        "jsonl": writing.write_jsonl,
        "qaserve": writing.write_qaserve,
    }
    chosen = _format(path, format)
    try:
        with replacing(path) as file:
            if path.name.endswith(".gz"):
                with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
                    writer[chosen](table, cast("IO[bytes]", packed))
            else:
                writer[chosen](table, file)
    except UnicodeEncodeError:
        raise DataError(
            f"{path.name}: a query or name holds half a surrogate pair, which UTF-8 cannot; clean it first"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` only when the block ends without an error."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("xb") as file:
            yield file
        unfinished.replace(path)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise DataError(f"{path}: cannot be written ({error.strerror}); check the path") from None
        raise


def _format(path: Path, given: Format | None) -> Format:
    if given is not None:
        if given not in get_args(Format):
            raise DataError(f"format: {given!r} is unknown; give one of {list(get_args(Format))}")
        return given
    for suffix, name in SUFFIXES.items():
        if path.name.endswith(suffix):
            return name
    raise DataError(f"{path.name}: the suffix names no format; use one of {list(SUFFIXES)} or give format=")
