"""Learning while routing: feedback as outcomes, models that come and go, a share for those little is known of."""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Self

import numpy as np

from eccos_integrations.assignment import AssignmentProblem
from eccos_integrations.errors import ConfigError
from eccos_integrations.guarantee import Evidence
from eccos_integrations.learnt import Learnt
from eccos_integrations.outcomes import FloatArray, OutcomeTable, column_means
from eccos_integrations.plan import Feedback
from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.predictors import ForecastMaker, Predictor
from eccos_integrations.recent import Recent

KNOWN = 50  # outcomes after which a model is explored no more


def feedback_table(feedback: Feedback, recent: Recent) -> OutcomeTable | None:
    """The feedback as an outcome of one model on one query, less what was learnt before; None if nothing is left."""
    news = {name: np.array([[getattr(feedback, name)]]) for name in feedback.measures - recent.learnt}
    if not news:
        return None
    unknown = {"quality": np.full((1, 1), math.nan)}
    return OutcomeTable([feedback.decision_id], [recent.query], [recent.model], tasks=None, **{**unknown, **news})


def taught(learnt: Learnt, news: OutcomeTable, frozen: ForecastMaker) -> Learnt:
    """What is known, with the news.

    Args:
        learnt: What is known.
        news: Outcomes.
        frozen: A predictor that must stay as it is: if it is the one in use, a copy learns. One of your own cannot be
            copied; it learns itself, if it has `update`.
    """
    predictor = learnt.predictor
    if isinstance(predictor, Predictor) and predictor is frozen:
        predictor = predictor.copy()
    if isinstance(predictor, Predictor) or hasattr(predictor, "update"):
        predictor.update(news)
    return replace(learnt, predictor=predictor)


def with_model(learnt: Learnt, model: Model, outcomes: OutcomeTable | None) -> Learnt:
    """What is known, with one more model.

    Raises:
        ConfigError: See `Router.add_model`.
    """
    if not isinstance(model, Model):
        raise ConfigError(f"model: got a {type(model).__name__}; give Model(name=...)")
    predictor = _own(learnt)
    predictor.add(model, outcomes)
    pool = ModelPool([*learnt.pool, model])
    # Past queries were not kept: on them the model is forecast by its average.
    average = predictor.average().select([model.name])
    history = learnt.history
    column = np.full(len(history), math.nan)
    return replace(
        learnt,
        pool=pool,
        predictor=predictor,
        history=Evidence(
            np.column_stack([history.quality, np.full(len(history), average.quality[0, 0])]),
            np.column_stack([history.cost_usd, np.full(len(history), average.cost_usd[0, 0])]),
            np.column_stack([history.outcome, column]),
            np.column_stack([history.outcome_cost_usd, column]),
        ),
        held_out=None,
    )


def without_model(learnt: Learnt, name: str) -> Learnt:
    """What is known, less one model.

    Raises:
        ConfigError: See `Router.remove_model`.
    """
    at = learnt.pool.names.index(learnt.pool[name].name)
    if len(learnt.pool) <= 2:
        raise ConfigError(f"model: without {name!r} one model would be left; routing needs at least two")
    limits = learnt.policy.capacity or {}
    if name in limits:
        rest = {limited: most for limited, most in limits.items() if limited != name}
        learnt = replace(learnt, policy=learnt.policy.model_copy(update={"capacity": rest or None}))
    predictor = _own(learnt)
    predictor.remove(name)
    pool = ModelPool([model for model in learnt.pool if model.name != name])
    history = Evidence(*(np.delete(getattr(learnt.history, part.name), at, axis=1) for part in fields(Evidence)))
    best = learnt.best
    if best == name:
        best = pool.names[int(np.argmax(column_means(history.outcome, unobserved=-1.0)))]
    return replace(learnt, pool=pool, predictor=predictor, history=history, held_out=None, best=best)


def _own(learnt: Learnt) -> Predictor:
    """A copy of the predictor that may be changed."""
    if not isinstance(learnt.predictor, Predictor):
        raise ConfigError(f"predictor: {type(learnt.predictor).__name__} cannot add or remove models; fit anew")
    return learnt.predictor.copy()


class Exploration:
    """A bounded share of the queries for models of which little is known. One caller at a time."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}
        self._outcomes: dict[str, int] = {}
        self._turns = 0

    def start(self, name: str, share: float, outcomes: OutcomeTable | None) -> None:
        """Explore a model from now on, unless enough is known of it."""
        known = outcomes is not None and name in outcomes.models
        count = int(np.isfinite(outcomes.select([name]).quality).sum()) if known and outcomes is not None else 0
        if share and count < KNOWN:
            self._shares[name], self._outcomes[name] = share, count

    def stop(self, name: str) -> None:
        """Explore it no more."""
        self._shares.pop(name, None)
        self._outcomes.pop(name, None)

    def seen(self, name: str) -> None:
        """One more outcome is known."""
        if name in self._outcomes:
            self._outcomes[name] += 1
            if self._outcomes[name] >= KNOWN:
                self.stop(name)

    def turn(self) -> str | None:
        """The model the next query shall go to, None for where the prices send it; every 1/share-th query has one."""
        if not self._shares:
            return None
        self._turns += 1
        for name, share in self._shares.items():
            if math.floor(self._turns * share) > math.floor((self._turns - 1) * share):
                return name
        return None

    def shares(self, pool: ModelPool, problem: AssignmentProblem) -> FloatArray | None:
        """(M,) least share of a batch by model, no more than its capacity; None where nothing is explored."""
        if not self._shares or not problem.n:
            return None
        shares = np.array([self._shares.get(name, 0.0) for name in pool.names])
        if problem.capacity is not None:
            shares = np.minimum(shares, problem.capacity / problem.n)
        whole: FloatArray = np.floor(shares * problem.n) / problem.n
        return whole

    def state(self) -> dict[str, Any]:
        """Plain JSON that `restore` makes the same exploration from."""
        return {"shares": self._shares, "outcomes": self._outcomes, "turns": self._turns}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """The exploration that `state` was taken from."""
        exploration = cls()
        exploration._shares, exploration._outcomes = dict(state["shares"]), dict(state["outcomes"])
        exploration._turns = state["turns"]
        return exploration
