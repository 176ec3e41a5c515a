"""Rows for the feedback log, written without anybody waiting for the disk."""

import logging
from collections.abc import Callable
from concurrent.futures import Future

from eccos_integrations.errors import EccosError
from eccos_integrations.serving.feedback import FeedbackLog
from eccos_integrations.serving.window import Request, Ticket

logger = logging.getLogger("eccos")


class Journal:
    """What a dispatcher logs. A row that is lost is warned of, and costs no answer.

    Args:
        log: None: nothing is logged.
        clock: The dispatcher's.
    """

    def __init__(self, log: FeedbackLog | None, clock: Callable[[], float]) -> None:
        self._log, self._clock = log, clock

    def decided(self, request: Request, ticket: Ticket) -> None:
        """A call is about to be made."""
        if self._log is None or request.worth is None:
            return
        forecast, row = request.worth.forecast, request.worth.row
        column = forecast.models.index(ticket.model)
        _write(
            self._log.submit_decided,
            ticket.decision,
            request.query,
            policy=request.policy,
            conversation=request.conversation,
            input_tokens=forecast.input_tokens[row, column],
            output_tokens=forecast.output_tokens[row, column],
        )

    def used(self, ticket: Ticket, outcome: str) -> None:
        """A call has ended."""
        if self._log is None:
            return
        usage = ticket.usage
        used: dict[str, float | None] = {"latency_s": self._clock() - ticket.begun_s}
        if usage is not None:
            used |= {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cached_tokens": usage.cached_tokens,
                "cost_usd": usage.usd(ticket.entry),
            }
        _write(self._log.submit_used, ticket.decision.id, ticket.model, outcome=outcome, **used)


def _write(write: Callable[..., Future[int]], *row: object, **rest: object) -> None:
    def complain(written: Future[int]) -> None:
        if not written.cancelled() and (error := written.exception()) is not None:
            logger.warning("not logged: %s", error)

    try:
        write(*row, **rest).add_done_callback(complain)
    except EccosError as error:
        logger.warning("not logged: %s", error)
