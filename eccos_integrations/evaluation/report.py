"""An evaluation, a table of models, a plot: for people."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from eccos_integrations.errors import MissingExtraError
from eccos_integrations.evaluation.harness import Evaluation
from eccos_integrations.formats import replacing

MOST_NAMED = 4  # models named per row


def evaluation_tables(evaluation: Evaluation) -> list[Table]:
    """What was realised, and who got the queries, as tables for a terminal 80 columns wide."""
    figures = Table(
        title=f"{evaluation.test_queries} unseen queries, fitted on {evaluation.fit_queries}; "
        f"predictor {evaluation.predictor}, seed {evaluation.seed}\nbest single: {escape(evaluation.best)}",
        title_justify="left",
        title_style="bold",
    )
    shares = Table(title="Who got the queries", title_justify="left", title_style="bold")
    for table in (figures, shares):
        table.add_column("routed by", no_wrap=True)
        table.add_column("floor", justify="right", no_wrap=True)
    for column in ("quality", "of best", "forecast", "USD/1k", "of best"):
        figures.add_column(column, justify="right", no_wrap=True)
    shares.add_column("shares", overflow="fold")
    previous = evaluation.rows[0].name
    for row in evaluation.rows:
        if row.name != previous and {row.name, previous} & {"threshold", "eccos"}:
            figures.add_section()
            shares.add_section()
        previous = row.name
        named = (row.name, "" if row.floor is None else f"{row.floor:.0%}")
        figures.add_row(
            *named,
            f"{row.realised.mean_quality:.3f}",
            f"{row.quality_of_best:.1%}",
            "" if math.isnan(row.forecast_quality) else f"{row.forecast_quality:.3f}",
            f"{1000 * row.realised.mean_cost_usd:.3f}",
            f"{row.cost_of_best:.1%}",
        )
        got = [f"{share:.0%} {escape(name)}" for name, share in row.realised.shares.items()]
        shares.add_row(*named, ", ".join(got[:MOST_NAMED] + [f"{len(got) - MOST_NAMED} more"][: len(got) > MOST_NAMED]))
    return [figures, shares]


def save_plot(
    path: Path, models: Sequence[tuple[str, float, float]], routed: Sequence[tuple[str, float, float]], title: str
) -> None:
    """Save realised quality over realised cost as PNG: single models as dots, routing as a line.

    Args:
        path: Where to.
        models: Name, mean USD per query, mean quality of each single model.
        routed: Label, mean USD per query, mean quality at each floor.
        title: What is shown.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DataError: The path cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plots") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, cost, quality in models:
        axes.plot(1000 * cost, quality, "o", color="0.6")
        axes.annotate(name, (1000 * cost, quality), xytext=(5, -9), textcoords="offset points", fontsize=7, color="0.4")
    cheapest_first = sorted(routed, key=lambda point: point[1])
    axes.plot([1000 * c for _, c, _ in cheapest_first], [q for _, _, q in cheapest_first], "o-", color="tab:red",
              label="ECCOS at its quality floors")  # fmt: skip
    for label, cost, quality in routed:
        axes.annotate(label, (1000 * cost, quality), xytext=(-4, 6), textcoords="offset points", fontsize=8, ha="right",
                      color="tab:red")  # fmt: skip
    costs = [1000 * cost for _, cost, _ in (*models, *routed)]
    axes.set(
        xscale="log",
        xlim=(min(costs) / 1.4, max(costs) * 4),  # room on the right for the dearest model's name
        xlabel="USD per 1,000 queries (log scale)",
        ylabel="mean quality",
        title=title,
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower right")
    axes.grid(visible=True, alpha=0.3)
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")
