"""A certified price in place of the floor on forecasts: who gets which query, and whether it is certified still."""

import logging
from dataclasses import replace

import numpy as np

from eccos_integrations.assignment import AssignmentProblem, Prices, Solution, solve
from eccos_integrations.assignment.problem import IntArray
from eccos_integrations.errors import ConfigError
from eccos_integrations.guarantee import DriftTest, Evidence, Guarantee, certify
from eccos_integrations.learnt import Learnt
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.policy import Policy
from eccos_integrations.predictors import Forecast, Predictor
from eccos_integrations.ranking import FIRST, Ranking

logger = logging.getLogger("eccos")

DEAR = 1e4  # times the mean cost: a price at which quality is bought whatever it costs


def guarantee_of(learnt: Learnt, policy: Policy) -> Guarantee:
    """Certify the policy's floor.

    Raises:
        ConfigError: No outcomes were kept back to certify on.
    """
    assert policy.confidence is not None
    assert isinstance(policy.min_quality, float)
    held_out = learnt.held_out
    if held_out is None:
        if policy.bound != "crossfit":
            raise ConfigError(
                f"confidence: this router kept no outcomes back to certify on; fit it with Policy(confidence="
                f"{policy.confidence:g}) or calibration=table, or give bound='crossfit'"
            )
        held_out = Evidence(*(np.zeros((0, len(learnt.pool))) for _ in range(4)))
    return certify(
        learnt.history,
        held_out,
        best=learnt.pool.names.index(learnt.best) if policy.relative_to == "best" else None,
        floor=policy.min_quality,
        confidence=policy.confidence,
        bound=policy.bound,
        relative_to=learnt.best,
    )


class Certificates:
    """What is certified of the forecasts as they were fitted, and whether that still holds.

    Args:
        fitted: What they are about. Feedback and a changed pool leave it alone.
        drift: Watches outcomes against forecasts, None until something is certified.
    """

    def __init__(self, fitted: Learnt, drift: DriftTest | None = None) -> None:
        self.fitted = fitted
        self.drift = drift
        self._known: dict[str, Guarantee] = {}  # by policy

    def of(self, policy: Policy, now: Learnt) -> Guarantee:
        """The guarantee of the policy's floor.

        Args:
            policy: Asks for confidence.
            now: What the router knows by now.

        Raises:
            ConfigError: No outcomes were kept back to certify on.
        """
        key = policy.model_dump_json(include={"min_quality", "relative_to", "confidence", "bound"})
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = guarantee_of(self.fitted, policy)
            if not known.certified:
                logger.warning("%s", known.message)
        if self.drift is None:
            self.drift = _drift_test(self.fitted, known)
        return replace(known, voided=self._void(now))

    def watch(self, residual: float) -> None:
        """Look for drift in outcome minus forecast of a decision; its first sign is logged."""
        if self.drift is not None and not self.drift.drifted and self.drift.update(min(max(residual, -1.0), 1.0)):
            logger.warning("outcomes have drifted away from the forecasts: certificates are void; fit anew")

    def _void(self, now: Learnt) -> str:
        if now.pool is not self.fitted.pool:
            return "a model was added or removed since"
        if self.drift is not None and self.drift.drifted:
            return f"outcomes have drifted away from the forecasts, as {self.drift.n} of them show"
        taught = self.drift is not None and self.drift.n > 0 and hasattr(now.predictor, "update")
        if taught and not isinstance(now.predictor, Predictor):
            return "the forecasts have changed since: the predictor learnt from feedback"
        return ""


def _drift_test(fitted: Learnt, guarantee: Guarantee) -> DriftTest:
    """Around the residuals of what the certified price chooses."""
    evidence = fitted.history if fitted.held_out is None else fitted.held_out
    rows = np.arange(len(evidence))
    chosen = preferred(evidence.quality, evidence.cost_usd, guarantee, fitted.pool.names.index(fitted.best))
    return DriftTest.from_residuals(evidence.outcome[rows, chosen] - evidence.quality[rows, chosen])


def preferred(quality: FloatArray, cost_usd: FloatArray, guarantee: Guarantee, best: int) -> IntArray:
    """(N,) the model that the certified price sends each query to; the best single model where none is certified."""
    if not guarantee.certified:
        return np.full(len(quality), best)
    chosen: IntArray = np.argmin(cost_usd - guarantee.price * quality, axis=1)
    return chosen


def holds(guarantee: Guarantee) -> bool:
    """Whether the floor is kept: by the certificate, or because the best single model, its yardstick, is used."""
    return not guarantee.voided and (guarantee.certified or guarantee.relative_to is not None)


def certified_ranking(forecast: Forecast, guarantee: Guarantee, learnt: Learnt) -> Ranking:
    """How queries rank the models where a certified price decides.

    Args:
        forecast: (N, M).
        guarantee: Its price.
        learnt: What it is about.
    """
    best = learnt.pool.names.index(learnt.best)
    wanted = preferred(forecast.quality, forecast.cost_usd, guarantee, best)
    adjusted = forecast.cost_usd - (guarantee.price if guarantee.certified else 0.0) * forecast.quality
    adjusted[np.arange(len(wanted)), wanted] -= FIRST
    reason = "routed at the certified price" if guarantee.certified else "not certified: the best single model"
    return Ranking(adjusted, [reason] * len(wanted), holds(guarantee))


def place(
    problem: AssignmentProblem, guarantee: Guarantee, best: int, *, gap: float, time_limit_s: float
) -> tuple[Solution, str]:
    """Send every query where the certified price does, as far as the loads allow.

    Args:
        problem: The batch; its floor is not used, it says in the slack whether it holds on forecasts too.
        guarantee: Its price.
        best: Column of the best single model.
        gap: Where the loads do not allow it: see `solve`.
        time_limit_s: See `solve`.

    Returns:
        The solution, and why the guarantee does not hold for it, "" if it does.
    """
    wanted = preferred(problem.quality, problem.cost_usd, guarantee, best)
    price = guarantee.price if guarantee.certified else DEAR * float(problem.cost_usd.mean() if problem.n else 0.0)
    loads = replace(problem, min_quality=None)
    fits = all(np.min(slack) >= 0 for slack in loads.slack(wanted).values())
    if problem.forbidden is not None:
        fits = fits and not problem.forbidden[np.arange(problem.n), wanted].any()
    if fits:
        solution = _solution(problem, wanted, Prices(quality=price), bound=0.0)
        return replace(solution, lower_bound=solution.total_cost_usd, gap=0.0), ""
    lost = price * (1 - problem.quality)
    if not guarantee.certified:
        lost[:, best] = 0.0
    solved = solve(replace(loads, cost_usd=problem.cost_usd + lost), gap=gap, time_limit_s=time_limit_s)
    placed = np.flatnonzero(solved.assignment >= 0)
    # Whatever has at least this quality costs at least the bound on both, less the price of this quality.
    bound = solved.lower_bound - float(lost[placed, solved.assignment[placed]].sum())
    solution = _solution(problem, solved.assignment, replace(solved.prices, quality=price), bound=bound)
    moved = int((solved.assignment != wanted).sum())
    why = f"{moved} of {problem.n} queries could not go where the price sends them: a limit or a context window binds"
    return replace(solution, status=solved.status, message=solved.message, gap=solved.gap), why


def _solution(problem: AssignmentProblem, assignment: IntArray, prices: Prices, *, bound: float) -> Solution:
    placed = np.flatnonzero(assignment >= 0)
    cost = problem.cost_usd[placed, assignment[placed]]
    quality = problem.quality[placed, assignment[placed]]
    return Solution(
        assignment=assignment,
        status="optimal",
        message="every query goes where the certified price sends it",
        mean_quality=float(quality.mean()) if len(placed) else float("nan"),
        mean_cost_usd=float(cost.mean()) if len(placed) else float("nan"),
        total_cost_usd=float(cost.sum()),
        lower_bound=bound,
        gap=0.0,
        prices=prices,
        slack=problem.slack(assignment),
    )
