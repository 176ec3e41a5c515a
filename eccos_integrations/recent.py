"""The latest decisions, with what is needed to learn from what comes of them. In memory only."""

import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from eccos_integrations.outcomes import FloatArray
from eccos_integrations.plan import Decision
from eccos_integrations.predictors import Forecast

MOST = 100_000  # decisions
MOST_CHARACTERS = 32_000_000  # of their queries together


@dataclass
class Recent:
    """One decision that feedback may still come for.

    Args:
        model: Where the query went.
        query: Its text.
        quality: What was forecast.
        learnt: Measures that feedback has taught already.
    """

    model: str
    query: str
    quality: float
    learnt: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Recent({self.model!r})"


class RecentDecisions:
    """Decisions by id, the oldest forgotten first. A pickled copy remembers none: feedback goes to who decided."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, Recent] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]  # a copy starts afresh

    def get(self, decision_id: str) -> Recent | None:
        """The decision, None if it is not known or forgotten."""
        return self._by_id.get(decision_id)

    def decide(
        self,
        query: str,
        column: int,
        forecast: Forecast,
        row: int,
        adjusted: FloatArray,
        reason: str,
        *,
        floor_met: bool,
    ) -> Decision:
        """Make a decision and remember it.

        Args:
            query: The text.
            column: The model it goes to; negative where no load was left.
            forecast: Of the batch.
            row: Of the query in it.
            adjusted: (M,) cost with every row priced in, by which fallbacks are ranked; inf where it may not go.
            reason: How it was chosen, in words.
            floor_met: Whether the policy's floor holds.
        """
        order = [int(j) for j in np.argsort(adjusted, kind="stable") if adjusted[j] < np.inf]
        decision_id = uuid.uuid4().hex
        names = forecast.models
        if column < 0:
            ranking = tuple(names[j] for j in order)
            return Decision(decision_id, None, np.nan, np.nan, ranking, "no model has room for it", floor_met)
        quality = float(forecast.quality[row, column])
        self._remember(decision_id, Recent(names[column], query, quality))
        return Decision(
            id=decision_id,
            model=names[column],
            quality=quality,
            cost_usd=float(forecast.cost_usd[row, column]),
            ranking=(names[column], *(names[j] for j in order if j != column)),
            reason=reason,
            floor_met=floor_met,
        )

    def _remember(self, decision_id: str, recent: Recent) -> None:
        with self._lock:
            self._by_id[decision_id] = recent
            self._characters += len(recent.query)
            while len(self._by_id) > MOST or (self._characters > MOST_CHARACTERS and len(self._by_id) > 1):
                _, oldest = self._by_id.popitem(last=False)
                self._characters -= len(oldest.query)
