"""A recorded outcome table played back as functions: what each model once answered, and what that cost."""

import ast
import gzip
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import numpy as np

from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import OutcomeTable

AnswerType = Literal["number", "python_literal"]


@dataclass(frozen=True)
class Reference:
    """The right answer to a question, and what kind of thing it is."""

    answer: str
    answer_type: AnswerType

    def is_met_by(self, text: str) -> bool:
        """Whether a text is this answer, up to how it is written."""
        try:
            if self.answer_type == "number":
                return float(text.replace(",", "")) == float(self.answer.replace(",", ""))
            return bool(ast.literal_eval(text) == ast.literal_eval(self.answer))
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return text.strip() == self.answer.strip()


@dataclass(frozen=True)
class Replay:
    """One recorded call.

    Args:
        model: Who answered.
        text: The answer.
        input_tokens: As recorded; NaN if it was not.
        output_tokens: As recorded; NaN if it was not.
        cost_usd: As recorded; NaN if it was not.
    """

    model: str
    text: str
    input_tokens: float
    output_tokens: float
    cost_usd: float


class ReplayModel:
    """One model of a table, as a function from a prompt to what it once did with the question in it.

    Args:
        name: The model.
        table: Its outcomes.
        references: Right answers by query id. A model recorded as right gives the reference, one recorded as wrong a
            wrong answer of the same type; without a reference the answer only says which of the two it is.
        seed: Same seed, same wrong answers.
    """

    def __init__(
        self, name: str, table: OutcomeTable, references: Mapping[str, Reference] | None = None, *, seed: int = 0
    ) -> None:
        self.name = name
        self._table = table.select([name])
        self._references = references or {}
        self._seed = seed
        self._row_of = {query: row for row, query in enumerate(table.queries)}

    def __repr__(self) -> str:
        return f"ReplayModel({self.name!r}, {len(self._table)} queries)"

    def __call__(self, prompt: str) -> Replay:
        """Answer as recorded.

        Args:
            prompt: A recorded question, or a longer text that contains one.

        Raises:
            ConfigError: No recorded question is in the prompt, or this model was not observed on it.
        """
        row = self.row(prompt)
        quality = self._table.quality[row, 0]
        if np.isnan(quality):
            raise ConfigError(f"replay: {self.name!r} was not observed on query_id {self._table.query_ids[row]!r}")
        return Replay(
            model=self.name,
            text=self._answer(self._table.query_ids[row], right=quality >= 0.5),
            input_tokens=float(self._table.input_tokens[row, 0]),
            output_tokens=float(self._table.output_tokens[row, 0]),
            cost_usd=float(self._table.cost_usd[row, 0]),
        )

    def row(self, prompt: str) -> int:
        """The table's row of the question in a prompt, the longest if there are several.

        Raises:
            ConfigError: There is none.
        """
        row = self._row_of.get(prompt)
        if row is not None:
            return row
        inside = [query for query in self._row_of if query and query in prompt]
        if not inside:
            raise ConfigError(f"replay: {self.name!r} has no record of this question; ask one of the table's")
        return self._row_of[max(inside, key=len)]

    def _answer(self, query_id: str, *, right: bool) -> str:
        reference = self._references.get(query_id)
        if reference is None:
            return "a right answer" if right else "a wrong answer"
        if right:
            return reference.answer
        return wrong_answer(reference, random.Random(f"{self._seed}:{query_id}:{self.name}"))  # noqa: S311


def replay(
    table: OutcomeTable, references: Mapping[str, Reference] | None = None, *, seed: int = 0
) -> dict[str, ReplayModel]:
    """Every model of a table as a function; see `ReplayModel`.

    Example:
        >>> from eccos_integrations import load_sample
        >>> models = replay(load_sample(), load_sample_references())
        >>> models["gpt-4o-mini-2024-07-18"](load_sample().queries[0]).text
        '[(4, 1), (4, 1), (4, 1), (4, 1), (2, 3), (2, 3)]'
    """
    return {name: ReplayModel(name, table, references, seed=seed) for name in table.models}


def load_sample_references() -> dict[str, Reference]:
    """Right answers of the bundled sample by query id. Source: see data/README.md."""
    packed = (files("eccos_integrations") / "data" / "sample_references.jsonl.gz").read_bytes()
    records = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
    return {record["query_id"]: Reference(record["reference"], record["answer_type"]) for record in records}


def wrong_answer(reference: Reference, rng: random.Random) -> str:
    """A text of the reference's type that is not the reference."""
    if reference.answer_type == "number":
        number = float(reference.answer.replace(",", ""))
        other = number + rng.choice([-10, -2, -1, 1, 2, 10])
        return str(int(other)) if other.is_integer() else str(other)
    try:
        return repr(_other(ast.literal_eval(reference.answer), rng))
    except (ValueError, SyntaxError):
        return repr(reference.answer + "?")


def _other(value: object, rng: random.Random) -> object:
    """Another value of the same type; None has no other, so it becomes 0."""
    match value:
        case bool():
            return not value
        case int():
            return value + rng.choice([-2, -1, 1, 2])
        case float():
            near = value + rng.choice([-2, -1, 1, 2])
            return near if near != value else -value  # too large to be moved by a step
        case str():
            return value[1:] if len(value) > 1 and rng.random() < 0.5 else value + (value[-1:] or "a")
        case bytes():
            return value + (value[-1:] or b"a")
        case list():
            return value[1:] if value and rng.random() < 0.5 else [*value, value[-1] if value else 0]
        case tuple():
            return (*value[:-1], _other(value[-1], rng)) if value else (0,)
        case dict():
            return {key: _other(item, rng) for key, item in value.items()} if value else {0: 0}
        case set():
            return value | {max((v for v in value if isinstance(v, int)), default=0) + 1}
        case _:
            return 0
