"""What `eccos replay` serves, and what it reports in the end."""

from pathlib import Path
from typing import Any

from rich.table import Table

from eccos_integrations.outcomes import OutcomeTable
from eccos_integrations.pool import ModelPool
from eccos_integrations.replay.faults import Faults
from eccos_integrations.replay.log import REFUSED
from eccos_integrations.replay.models import load_sample_references
from eccos_integrations.replay.provider import ReplayProvider
from eccos_integrations.sample import load_sample


def open_provider(table: Path | None, pool: Path | None, faults: Faults, speed: float) -> ReplayProvider:
    """The provider of a table's file, or of the bundled sample with its right answers.

    Raises:
        DataError: The table cannot be read.
        ConfigError: The pool cannot be read, or does not fit the table.
    """
    return ReplayProvider(
        load_sample() if table is None else OutcomeTable.read(table),
        None if pool is None else ModelPool.read(pool),
        load_sample_references() if table is None else None,
        faults,
        speed=speed,
    )


def served(provider: ReplayProvider) -> dict[str, dict[str, Any]]:
    """By model: calls, how many were answered and refused, their tokens, and violations by limit."""
    log, violations = provider.log, provider.violations()
    figures: dict[str, dict[str, Any]] = {}
    for name in provider.pool.names:
        calls = [entry for entry in log if entry.model == name]
        admitted = [entry for entry in calls if entry.status != REFUSED]
        figures[name] = {
            "calls": len(calls),
            "answered": sum(entry.is_answered for entry in calls),
            "refused": len(calls) - len(admitted),
            "input_tokens": sum(entry.input_tokens for entry in admitted),
            "output_tokens": sum(entry.output_tokens for entry in admitted),
            "violations": violations.get(name, {}),
        }
    return figures


def served_table(figures: dict[str, dict[str, Any]]) -> Table:
    """The figures of `served` for people."""
    table = Table("model", title="served")
    for title in ("calls", "answered", "refused", "tokens", "violations"):
        table.add_column(title, justify="right")
    for name, row in figures.items():
        limits = ", ".join(f"{count} {limit}" for limit, count in row["violations"].items())
        tokens = row["input_tokens"] + row["output_tokens"]
        table.add_row(name, str(row["calls"]), str(row["answered"]), str(row["refused"]), str(tokens), limits or "0")
    return table
