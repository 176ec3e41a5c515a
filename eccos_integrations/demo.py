"""The demo: learn from 700 past questions, route 300 unseen ones jointly through LangChain, show what that saved."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from eccos_integrations.errors import MissingExtraError
from eccos_integrations.evaluation import baselines, realise
from eccos_integrations.evaluation.harness import FLOORS
from eccos_integrations.evaluation.report import save_plot
from eccos_integrations.outcomes import OutcomeTable
from eccos_integrations.policy import Policy
from eccos_integrations.replay import Reference, Replay, ReplayModel, load_sample_references, replay
from eccos_integrations.router import Router
from eccos_integrations.sample import load_sample

FLOOR = 0.99  # of the best single model's quality
MOST_EACH = 100  # queries any one model may get: a load limit

Advance = Callable[[], None]


@dataclass(frozen=True)
class DemoResult:
    """What the demo did.

    Args:
        best: The best single model on the past questions.
        queries: Number of unseen questions routed.
        quality: Share of them answered right.
        cost_usd: What that cost in all.
        best_quality: The same for always asking the best single model.
        best_cost_usd: Likewise.
        counts: Questions by model, most first.
    """

    best: str
    queries: int
    quality: float
    cost_usd: float
    best_quality: float
    best_cost_usd: float
    counts: dict[str, int]

    @property
    def saved(self) -> float:
        """Share of the best single model's cost that was not spent."""
        return 1 - self.cost_usd / self.best_cost_usd

    @property
    def kept(self) -> float:
        """Share of the best single model's quality that was kept."""
        return self.quality / self.best_quality


def fit_demo() -> tuple[Router, OutcomeTable]:
    """A router fitted on 70 % of the bundled sample, and the other 30 %."""
    past, unseen = load_sample().split(0.7, seed=0)
    policy = Policy(min_quality=FLOOR, relative_to="best", capacity=dict.fromkeys(past.models, MOST_EACH))
    return Router.fit(past, policy=policy, predictor="hybrid", seed=0), unseen


def run_demo(router: Router, unseen: OutcomeTable, advance: Advance) -> DemoResult:
    """Ask all unseen questions in one batch of a `RunnableRouter` over replayed models and grade the answers.

    Args:
        router: From `fit_demo`.
        unseen: Likewise.
        advance: Called once per answer.

    Raises:
        MissingExtraError: langchain-core is not installed.
    """
    try:
        from langchain_eccos import RunnableRouter
    except ImportError:
        raise MissingExtraError("langchain-core", "langchain") from None
    references = load_sample_references()
    models = replay(unseen, references)
    chain = RunnableRouter[str, Replay](
        members={name: _counted(model, advance) for name, model in models.items()}, router=router
    )
    answers = chain.batch(unseen.queries)
    best = [models[router.best](query) for query in unseen.queries]
    counts = Counter(answer.model for answer in answers)
    return DemoResult(
        best=router.best,
        queries=len(unseen),
        quality=_share_right(answers, unseen, references),
        cost_usd=sum(answer.cost_usd for answer in answers),
        best_quality=_share_right(best, unseen, references),
        best_cost_usd=sum(answer.cost_usd for answer in best),
        counts=dict(counts.most_common()),
    )


def demo_tables(result: DemoResult) -> list[Table]:
    """The outcome, and who got what, for the terminal."""
    summary = Table(
        title=f"{result.queries} unseen questions, floor {FLOOR:.0%} of the best model, at most {MOST_EACH} per model",
        title_justify="left",
        title_style="bold",
    )
    summary.add_column("")
    for column in ("quality", "of best", "USD/1,000", "saved"):
        summary.add_column(column, justify="right")
    for name, quality, cost_usd, style in (
        (f"always {result.best}", result.best_quality, result.best_cost_usd, ""),
        ("ECCOS", result.quality, result.cost_usd, "bold green"),
    ):
        summary.add_row(
            name,
            f"{quality:.1%}",
            f"{quality / result.best_quality:.1%}",
            f"{1000 * cost_usd / result.queries:.3f}",
            f"{1 - cost_usd / result.best_cost_usd:.1%}",
            style=style,
        )
    shares = Table(title="Who got what", title_justify="left", title_style="bold")
    shares.add_column("model")
    shares.add_column("questions", justify="right")
    shares.add_column("share", justify="right")
    for model, count in result.counts.items():
        shares.add_row(model, str(count), f"{count / result.queries:.0%}")
    return [summary, shares]


def plot_demo(path: Path, router: Router, unseen: OutcomeTable) -> None:
    """Save the cost-quality plot: every single model, and ECCOS at its floors, as realised, without load limits.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    models = [(name, realise(unseen, baselines.one_model(unseen, name))) for name in unseen.models]
    routed = []
    for floor in FLOORS:
        policy = Policy(min_quality=floor, relative_to="best")
        routed.append((f"{floor:.0%}", realise(unseen, router.plan(unseen.queries, policy).assignment)))
    save_plot(
        path,
        [(name, r.mean_cost_usd, r.mean_quality) for name, r in models],
        [(label, r.mean_cost_usd, r.mean_quality) for label, r in routed],
        title=f"{len(unseen)} unseen questions: ECCOS against each single model",
    )


def _counted(model: ReplayModel, advance: Advance) -> Callable[[Any], Replay]:
    def answer(query: Any) -> Replay:
        answered = model(query)
        advance()
        return answered

    return answer


def _share_right(answers: list[Replay], unseen: OutcomeTable, references: dict[str, Reference]) -> float:
    right = [references[query_id].is_met_by(a.text) for query_id, a in zip(unseen.query_ids, answers, strict=True)]
    return sum(right) / len(right)
