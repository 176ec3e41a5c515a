"""The books of the calls under way: their leases, renewed as long as they last, and what the ended ones used."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from eccos_integrations.errors import EccosError
from eccos_integrations.serving.conversations import Home
from eccos_integrations.serving.ledger import End, Lease, Ledger
from eccos_integrations.serving.window import Ticket, Usage

logger = logging.getLogger("eccos")

AT_ONCE = 256  # in one step of the ledger


class Books:
    """Whoever ends a call says so without waiting; one thread tells the ledger.

    Args:
        ledger: Keeps the limits.
        clock: Seconds that only move forward.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger, self._clock = ledger, clock
        self._leases: dict[str, tuple[Lease, asyncio.AbstractEventLoop | None]] = {}  # and where the call is awaited
        self._ended: deque[tuple[End, str | None, Home]] = deque()
        self._lock = threading.Lock()
        self._renew_at = clock() + ledger.lease_s / 3

    @property
    def unsettled(self) -> bool:
        """Whether calls have ended that the ledger does not know of."""
        return bool(self._ended)

    @property
    def open(self) -> bool:
        """Whether there is anything to do, now or later."""
        return bool(self._ended or self._leases)

    def begin(self, lease: Lease, loop: asyncio.AbstractEventLoop | None) -> None:
        """A call begins, awaited in this event loop; None: in a thread."""
        with self._lock:
            self._leases[lease.id] = lease, loop

    def holds(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether calls that are awaited in this event loop are under way."""
        with self._lock:
            return any(where is loop for _, where in self._leases.values())

    def end(self, ticket: Ticket, usage: Usage | None, *, sent: bool, conversation: str | None) -> None:
        """A call has ended.

        Args:
            ticket: Of the call.
            usage: None: not known.
            sent: Whether the provider saw it.
            conversation: That is at home there from now on.
        """
        lease, end = ticket.lease, End(ticket.lease, sent=sent)
        tokens = 0 if usage is None else usage.input_tokens + usage.output_tokens
        if usage is not None:
            usd = usage.usd(ticket.entry)
            end = End(lease, tokens, lease.cost_usd if usd is None else usd)
        with self._lock:
            self._leases.pop(lease.id, None)
            self._ended.append((end, conversation, Home(lease.model, tokens)))

    def settle(self) -> None:
        """Tell the ledger what has ended. What fails costs a lease time, never an answer."""
        while self._ended:
            ended = [self._ended.popleft() for _ in range(min(len(self._ended), AT_ONCE))]
            try:
                self._ledger.end_all([end for end, _, _ in ended])
                if homes := {conversation: home for _, conversation, home in ended if conversation is not None}:
                    self._ledger.keep(homes)
            except Exception as error:  # noqa: BLE001
                name = type(error).__name__
                logger.warning("%d calls could not be booked (%s): they count until they expire", len(ended), name)

    def renew(self) -> None:
        """Renew the leases of all calls under way, three times in a lease's time."""
        if self._clock() < self._renew_at:
            return
        self._renew_at = self._clock() + self._ledger.lease_s / 3
        with self._lock:
            leases = [lease for lease, _ in self._leases.values()]
        for start in range(0, len(leases), AT_ONCE):
            with suppress(EccosError):  # the store is away, which is said elsewhere; in a third of a lease's time again
                self._ledger.renew_all(leases[start : start + AT_ONCE])
