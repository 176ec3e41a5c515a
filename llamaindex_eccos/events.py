"""What LlamaIndex's instrumentation hears of a decision."""

from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent

from eccos_integrations.plan import Decision
from llamaindex_eccos.decisions import record, tell


class EccosRouteEvent(BaseEvent):
    """A model was chosen for a call, in the span of the call. Holds no text of the query.

    Attributes:
        model: The one that is called now; None where no load was left.
        decision_id: Name to give feedback by.
        quality: Forecast.
        cost_usd: Forecast.
        floor_met: Whether the policy's floor holds.
        reason: How it was chosen, in words.
        attempt: 1 for the first.

    Example:
        >>> EccosRouteEvent(
        ...     model="small", decision_id="x", quality=0.9, cost_usd=1e-4, floor_met=True, reason=""
        ... ).attempt
        1
    """

    model: str | None
    decision_id: str
    quality: float
    cost_usd: float
    floor_met: bool
    reason: str
    attempt: int = 1

    @classmethod
    def class_name(cls) -> str:
        """The name in dumps."""
        return "EccosRouteEvent"


def announce(decision: Decision, attempt: int = 1) -> None:
    """Tell LlamaIndex's instrumentation what was decided, as an event of the caller's own span."""
    told = record(decision, attempt)
    tell(told)
    get_dispatcher(__name__).event(EccosRouteEvent(**told))
