"""Which model a conversation is with, and what leaving it costs."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eccos_integrations.pool import Model

MOST = 10_000  # conversations


class Home(NamedTuple):
    """Where a conversation was answered last.

    Attributes:
        model: Who answered.
        tokens: That its provider may have cached.
    """

    model: str
    tokens: int

    def leaving_usd(self, model: Model) -> float:
        """USD that the cached tokens save at the home, whose prices these are; 0 where they are not known."""
        full, cached = model.input_usd_per_million_tokens, model.cached_input_usd_per_million_tokens
        return 0.0 if full is None or cached is None else self.tokens * max(full - cached, 0.0) / 1e6


class Conversations:
    """The latest conversations of this process, the longest silent forgotten first."""

    def __init__(self) -> None:
        self._homes: OrderedDict[str, Home] = OrderedDict()
        self._lock = threading.Lock()

    def homes(self, conversations: Sequence[str]) -> list[Home | None]:
        """Of each, None where it is not known."""
        return [self._homes.get(conversation) for conversation in conversations]

    def keep(self, homes: Mapping[str, Home]) -> None:
        """Note who answered last."""
        with self._lock:
            for conversation, home in homes.items():
                self._homes[conversation] = home
                self._homes.move_to_end(conversation)
            while len(self._homes) > MOST:
                self._homes.popitem(last=False)
