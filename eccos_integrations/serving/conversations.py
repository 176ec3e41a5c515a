"""Which model a conversation is with, and what leaving it costs."""

import threading
from collections import OrderedDict

from eccos_integrations.router import Router
from eccos_integrations.serving.window import Usage

MOST = 10_000  # conversations


class Conversations:
    """The latest conversations of this process, the longest silent forgotten first.

    Args:
        router: Its pool has the prices of cached tokens.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._known: OrderedDict[str, tuple[str, int]] = OrderedDict()  # model, tokens that its provider has cached
        self._lock = threading.Lock()

    def home(self, conversation: str | None) -> tuple[str | None, float]:
        """The conversation's model, and USD that its cached tokens save there; None where there is none."""
        name, tokens = self._known.get(conversation or "", (None, 0))
        pool = self._router.pool
        if name is None or name not in pool:
            return None, 0.0
        full, cached = pool[name].input_usd_per_million_tokens, pool[name].cached_input_usd_per_million_tokens
        return name, 0.0 if full is None or cached is None else tokens * max(full - cached, 0.0) / 1e6

    def keep(self, conversation: str | None, model: str, usage: Usage | None) -> None:
        """Note who answered last."""
        if conversation is None:
            return
        tokens = 0 if usage is None else usage.input_tokens + usage.output_tokens
        with self._lock:
            self._known[conversation] = model, tokens
            self._known.move_to_end(conversation)
            while len(self._known) > MOST:
                self._known.popitem(last=False)
