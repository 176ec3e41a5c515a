"""Who answered what, how well, at what price: the table everything else is learnt from."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.errors import DataError

FloatArray = NDArray[np.float64]
Format = Literal["parquet", "csv", "jsonl", "qaserve"]

# The columns that hold one number per (query, model), and the largest value each may have.
MEASURES: dict[str, float] = {
    "quality": 1.0,
    "cost_usd": np.inf,
    "input_tokens": np.inf,
    "output_tokens": np.inf,
    "latency_s": np.inf,
}


@dataclass(frozen=True, eq=False, repr=False)
class OutcomeTable:
    """Outcomes of M models on N queries, as arrays with NaN where a model was not observed.

    Args:
        query_ids: N distinct names.
        queries: The N texts.
        models: M distinct names.
        quality: (N, M) scores in 0..1; a right/wrong label is the special case.
        cost_usd: (N, M) USD per query; default all unobserved.
        input_tokens: (N, M); default all unobserved.
        output_tokens: (N, M); default all unobserved.
        latency_s: (N, M) seconds; default all unobserved.
        tasks: N labels, for reports and stratified splits, never a feature.

    Raises:
        DataError: A name repeats, a shape is wrong, a value is out of range, or nothing was observed.

    Example:
        >>> table = OutcomeTable(["a", "b"], ["2+2?", "prove it"], ["small", "large"], quality=[[1, 1], [0, 1]])
        >>> table
        OutcomeTable(2 queries x 2 models, 100% observed)
        >>> table.select(models=["large"]).quality.mean()
        np.float64(1.0)
    """

    query_ids: list[str]
    queries: list[str]
    models: list[str]
    quality: FloatArray
    cost_usd: FloatArray = field(default=None)  # type: ignore[arg-type]  # filled with NaN below
    input_tokens: FloatArray = field(default=None)  # type: ignore[arg-type]
    output_tokens: FloatArray = field(default=None)  # type: ignore[arg-type]
    latency_s: FloatArray = field(default=None)  # type: ignore[arg-type]
    tasks: list[str] | None = None

    def __post_init__(self) -> None:
        for name in ("query_ids", "queries", "models"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        n, m = len(self.query_ids), len(self.models)
        if not n or not m:
            raise DataError(f"the outcome table is empty: {n} queries x {m} models; give at least one of each")
        if len(self.queries) != n:
            raise DataError(f"queries: {len(self.queries)} texts for {n} query_ids; give one text per id")
        for name in ("query_ids", "models"):
            _check_names(name, getattr(self, name))
        if self.tasks is not None:
            object.__setattr__(self, "tasks", _texts("tasks", self.tasks))
            if len(self.tasks) != n:
                raise DataError(f"tasks: {len(self.tasks)} labels for {n} queries; give one per query, or None")
        for name, most in MEASURES.items():
            given = getattr(self, name)
            try:
                array = np.full((n, m), np.nan) if given is None else np.array(given, dtype=np.float64)
            except (TypeError, ValueError, OverflowError):
                raise DataError(f"{name}: not an array of numbers; give (queries, models) = {(n, m)} of them") from None
            if array.shape != (n, m):
                raise DataError(f"{name}: shape {array.shape}, expected (queries, models) = {(n, m)}")
            wrong = ~np.isnan(array) & ~((array >= 0) & (array <= most) & np.isfinite(array))
            if wrong.any():
                i, j = np.argwhere(wrong)[0]
                rule = "between 0 and 1" if most == 1 else "finite and not negative"
                raise DataError(
                    f"{name}: {array[i, j]:g} for query_id {self.query_ids[i]!r}, model {self.models[j]!r}; "
                    f"it must be {rule}, or unobserved"
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if all(np.isnan(getattr(self, name)).all() for name in MEASURES):
            raise DataError("quality: no outcome was observed; the table needs at least one")

    def __repr__(self) -> str:
        share = np.isfinite(self.quality).mean()
        return f"OutcomeTable({len(self)} queries x {len(self.models)} models, {share:.0%} observed)"

    def __len__(self) -> int:
        return len(self.query_ids)

    @classmethod
    def read(cls, path: str | Path, format: Format | None = None) -> Self:  # the public name
        """Read a table; the format follows from the suffix unless given.

        Args:
            path: `.parquet` and `.csv` hold one row per (query, model), `.jsonl[.gz]` one line per query with its
                outcomes nested, `.json` the records of QAServe (arXiv 2502.20576).
            format: One of `"parquet"`, `"csv"`, `"jsonl"`, `"qaserve"`.

        Raises:
            DataError: The file is missing, damaged or breaks a rule of the table; names the row and the fix.
        """
        from eccos_integrations.formats import read_columns

        return cls(**read_columns(Path(path), format))

    def write(self, path: str | Path, format: Format | None = None) -> None:  # the public name
        """Write the table; the file appears whole or not at all. See `read` for the formats.

        Raises:
            DataError: The suffix names no format.
        """
        from eccos_integrations.formats import write_table

        write_table(self, Path(path), format)

    def take(self, rows: NDArray[np.integer] | Sequence[int]) -> Self:
        """The table of these rows (positions), in this order."""
        try:
            rows = np.arange(len(self))[rows]
        except IndexError:
            raise DataError(f"rows: give positions from 0 to {len(self) - 1}, or a mask of {len(self)}") from None
        return type(self)(
            query_ids=[self.query_ids[i] for i in rows],
            queries=[self.queries[i] for i in rows],
            models=self.models,
            tasks=None if self.tasks is None else [self.tasks[i] for i in rows],
            **{name: getattr(self, name)[rows] for name in MEASURES},
        )

    def select(self, models: Sequence[str]) -> Self:
        """The table of these models, in this order.

        Raises:
            DataError: The table has no such model.
        """
        missing = [name for name in models if name not in self.models]
        if missing:
            raise DataError(f"models: {missing} not in the table, which has {self.models}")
        columns = [self.models.index(name) for name in models]
        return type(self)(
            query_ids=self.query_ids,
            queries=self.queries,
            models=list(models),
            tasks=self.tasks,
            **{name: getattr(self, name)[:, columns] for name in MEASURES},
        )

    def split(self, fraction: float, seed: int = 0) -> tuple[Self, Self]:
        """Split the queries in two: `fraction` of them, and the rest.

        Stratified by task where tasks are known. Queries with the same text stay on the same side.

        Args:
            fraction: Share of the first part, between 0 and 1.
            seed: Same seed, same split.

        Raises:
            DataError: The fraction is not between 0 and 1, or one side would be empty.
        """
        if not 0 < fraction < 1:
            raise DataError(f"fraction: {fraction} leaves one side empty; give a number between 0 and 1")
        first: list[int] = []
        second: list[int] = []
        for seen, same_text in enumerate(_shuffled_by_task(self, np.random.default_rng(seed))):
            # Systematic sampling along a list sorted by task gives every task its share, to within one text.
            goes_first = np.floor((seen + 1) * fraction + 0.5) > np.floor(seen * fraction + 0.5)
            (first if goes_first else second).extend(same_text)
        if not first or not second:
            raise DataError(f"{len(self)} queries cannot be split {fraction:g} to {1 - fraction:g}; give more queries")
        return self.take(sorted(first)), self.take(sorted(second))

    def folds(self, k: int, seed: int = 0) -> list[NDArray[np.int64]]:
        """Rows in k parts of equal size (to within one text), stratified by task, the same text in one part only.

        Args:
            k: Number of parts; fewer come back where there are fewer distinct texts.
            seed: Same seed, same parts.
        """
        groups = _shuffled_by_task(self, np.random.default_rng(seed))
        k = min(k, len(groups))
        return [np.array(sorted(row for group in groups[part::k] for row in group)) for part in range(k)]


def words(text: str) -> str:
    """The text with its white space folded: two texts alike in this are the same query."""
    return " ".join(text.split())


def column_means(values: FloatArray, *, unobserved: float = np.nan) -> FloatArray:
    """(M,) means of what was observed in each column of (N, M); `unobserved` where nothing was."""
    columns = [column[np.isfinite(column)] for column in values.T]
    return np.array([column.mean() if len(column) else unobserved for column in columns], dtype=np.float64)


def _texts(name: str, values: Sequence[str]) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise DataError(f"{name}: got {'one string' if isinstance(values, str) else type(values).__name__}; "
                        "give a list of strings")  # fmt: skip
    values = list(values)
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{name}: item {position} is a {type(value).__name__}; give strings")
    return values


def _check_names(name: str, values: list[str]) -> None:
    if len(set(values)) != len(values):
        repeated = Counter(values).most_common(1)[0][0]
        raise DataError(f"{name}: {repeated!r} stands twice; give each name once")
    if "" in values:
        raise DataError(f"{name}: item {values.index('')} is empty; give it a name")


def _shuffled_by_task(table: OutcomeTable, rng: np.random.Generator) -> list[list[int]]:
    """Rows grouped by equal text; the groups in random order within tasks, the tasks in random order."""
    by_text: dict[str, list[int]] = {}
    for row, text in enumerate(table.queries):
        by_text.setdefault(words(text), []).append(row)
    groups = list(by_text.values())
    groups = [groups[i] for i in rng.permutation(len(groups))]
    if table.tasks is None:
        return groups
    names = sorted(set(table.tasks))
    rank = dict(zip(names, rng.permutation(len(names)).tolist(), strict=True))
    tasks = table.tasks
    return sorted(groups, key=lambda group: rank[tasks[group[0]]])
