"""The `eccos` command."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from eccos_integrations import __version__
from eccos_integrations.errors import ConfigError, EccosError, MissingExtraError
from eccos_integrations.outcomes import OutcomeTable
from eccos_integrations.pool import ModelPool

app = typer.Typer(
    help="ECCOS: choose one LLM per query, jointly, at least cost under a quality floor and load limits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals hold prompts
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main() -> None:
    """Run the command; an error of ours is one line on stderr and exit status 1."""
    with _solver_chatter_to_stderr():
        try:
            app()
        except EccosError as error:
            # The words may hold brackets (an extra's name, a model's), which are no markup.
            Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise SystemExit(1) from None


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)  # noqa: T201  # the answer
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[  # typer calls back
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    plot: Annotated[Path, typer.Option(help="Where to save the cost-quality plot (PNG).")] = Path("eccos-demo.png"),
    as_json: AsJson = False,
) -> None:
    """Route 300 unseen questions over ten replayed models and show what that saved. No key, no download."""
    from eccos_integrations.demo import demo_tables, fit_demo, plot_demo, run_demo

    console = Console()
    with _progress() as progress:
        step = progress.add_task("learning from 700 past questions", total=None)
        router, unseen = fit_demo()
        progress.update(step, total=1, completed=1)
        step = progress.add_task(f"routing and asking {len(unseen)} unseen ones", total=len(unseen))
        result = run_demo(router, unseen, lambda: progress.advance(step))
        step = progress.add_task("plotting", total=None)
        try:
            plot_demo(plot, router, unseen)
            plotted = f"Cost-quality plot: {plot}"
        except MissingExtraError as error:
            plotted = f"No plot: {error}"
        progress.update(step, total=1, completed=1)
    if as_json:
        figures = {"saved": result.saved, "kept": result.kept, "plot": str(plot)}
        print(json.dumps(vars(result) | figures))  # noqa: T201  # the answer
        return
    for table in demo_tables(result):
        console.print(table)
    console.print(
        f"Saved {result.saved:.0%} of the cost of the best model alone and kept {result.kept:.1%} of its quality.",
        highlight=False,
    )
    console.print(plotted, markup=False, highlight=False)


@app.command()
def evaluate(
    table: Annotated[Path, typer.Argument(help="Outcomes: .parquet, .csv, .jsonl[.gz], or QAServe .json.")],
    pool: Annotated[Path | None, typer.Option(help="Models and prices (TOML); default: those of the table.")] = None,
    test_fraction: Annotated[float, typer.Option(help="Share of the queries held out.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Of the split and the fit.")] = 0,
    predictor: Annotated[
        str, typer.Option(help="auto, prior, ridge, trees, retrieval, clusters, trained or hybrid.")
    ] = "auto",
    encoder: Annotated[
        str, typer.Option(help="lexical, static, minilm, several joined by +, or a sentence-transformers folder.")
    ] = "lexical",
    as_json: AsJson = False,
) -> None:
    """Fit on one part of a table, route the rest, and report what ECCOS and the baselines realised."""
    from eccos_integrations.evaluation import evaluate as run
    from eccos_integrations.evaluation.report import evaluation_tables

    with _progress() as progress:
        step = progress.add_task("fitting and routing", total=None)
        report = run(
            OutcomeTable.read(table),
            None if pool is None else ModelPool.read(pool),
            test_fraction=test_fraction,
            seed=seed,
            predictor=predictor,
            encoder=encoder,
        )
        progress.update(step, total=1, completed=1)
    if as_json:
        print(json.dumps(report.to_dict()))  # noqa: T201  # the answer
    else:
        Console().print(*evaluation_tables(report))


@app.command()
def replay(
    table: Annotated[
        Path | None, typer.Argument(help="Outcomes, as for evaluate; default: the bundled sample.")
    ] = None,
    pool: Annotated[Path | None, typer.Option(help="Models, limits and speeds (TOML); default: no limits.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On loopback; 0: any free one.")] = 8000,
    speed: Annotated[float, typer.Option(help="Latencies are divided by it; inf: no waiting.")] = 1.0,
    error_rate: Annotated[float, typer.Option(help="Part of the calls that answer 500.")] = 0.0,
    hang_rate: Annotated[float, typer.Option(help="Part that answers nothing for 30 s.")] = 0.0,
    slow_rate: Annotated[float, typer.Option(help="Part that takes ten times as long.")] = 0.0,
    malformed_rate: Annotated[float, typer.Option(help="Part whose answer is not JSON.")] = 0.0,
    cut_rate: Annotated[float, typer.Option(help="Part whose connection ends half-way.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the faults.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Serve a table's models over HTTP as OpenAI does, with limits and faults; at Ctrl-C report what came in."""
    from eccos_integrations.replay import Faults, ReplayServer
    from eccos_integrations.replay.command import open_provider, served, served_table

    faults = Faults(
        error_rate=error_rate,
        hang_rate=hang_rate,
        slow_rate=slow_rate,
        malformed_rate=malformed_rate,
        cut_rate=cut_rate,
        seed=seed,
    )
    provider = open_provider(table, pool, faults, speed)
    with ReplayServer(provider, port=port) as server, suppress(KeyboardInterrupt):
        about = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        about.print(f"Serving {server.url} until Ctrl-C, with any API key, for:", *provider.pool.names, sep="\n  ")
        threading.Event().wait()
    figures = served(provider)
    if as_json:
        print(json.dumps(figures))  # noqa: T201  # the answer
    else:
        Console().print(served_table(figures))


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="A file of the checkout's benchmarks folder, e.g. assignment.")],
    as_json: AsJson = False,
) -> None:
    """Run a benchmark of the source checkout."""
    import runpy

    folder = Path(__file__).parents[1] / "benchmarks"
    known = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("test_"))
    if name not in known:
        raise ConfigError(f"bench: {name!r} is unknown; give one of {known} (benchmarks come with the source checkout)")
    runpy.run_path(str(folder / f"{name}.py"))["main"](as_json=as_json)


def _progress() -> Progress:
    """A progress bar on stderr that leaves nothing behind; silent where nobody watches."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip


@contextmanager
def _solver_chatter_to_stderr() -> Iterator[None]:
    """HiGHS may print a line of its own to the process' stdout; this keeps ours clean, `--json` above all."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    python_stdout = sys.stdout
    sys.stdout = os.fdopen(ours, "w", encoding=python_stdout.encoding, errors="replace", closefd=True)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(ours, 1)
        sys.stdout = python_stdout


if __name__ == "__main__":
    main()
