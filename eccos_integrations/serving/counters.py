"""The arithmetic of limits: whole numbers, and windows made of sub-counters that count whole at either end."""

import json
import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import takewhile
from typing import Literal

from eccos_integrations.errors import ConfigError

PARTS = 60  # sub-counters per window
NANO = 10**9  # money is counted in billionths of a USD: sums of floats drift
MICRO = 10**6  # time in microseconds
# Nobody can foretell when a call in flight ends: this long is a guess that keeps retries cool.
GUESS_US = MICRO // 10

Kind = Literal["calls", "requests", "tokens", "usd"]


def amounts(tokens: float, cost_usd: float) -> dict[Kind, int]:
    """What one call takes of each kind of limit.

    Raises:
        ConfigError: An amount is not a finite number of at least 0.
    """
    for field, value in (("tokens", tokens), ("cost_usd", cost_usd)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{field}={value}: give a finite number of at least 0; what is unknown is not zero")
    return {"calls": 1, "requests": 1, "tokens": math.ceil(tokens), "usd": round(cost_usd * NANO)}


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` at a time or, with `parts`, in the sub-counters of `part_us` that count at a time."""

    key: str
    name: str
    kind: Kind
    most: int
    part_us: int = MICRO
    parts: int = 0

    @classmethod
    def rolling(cls, key: str, name: str, kind: Kind, most: int, window_s: float, lag_s: float = 0.0) -> "Limit":
        """A limit on any window, for what may happen `lag_s` after it was counted."""
        part_us = max(1, math.ceil(window_s * MICRO / PARTS))
        return cls(key, name, kind, most, part_us, PARTS + 1 + math.ceil(lag_s * MICRO / part_us))


@dataclass(frozen=True)
class Limits:
    """The limits of every model and every budget, by name."""

    models: dict[str, tuple[Limit, ...]]
    budgets: dict[str, Limit]

    def scaled(self, most: Callable[[int], int]) -> "Limits":
        """The same limits with other numbers."""
        models = {m: tuple(replace(limit, most=most(limit.most)) for limit in own) for m, own in self.models.items()}
        return Limits(models, {b: replace(limit, most=most(limit.most)) for b, limit in self.budgets.items()})

    def drawn_on(self, model: str, budgets: Collection[str] | None) -> list[Limit]:
        """The limits that a call of this model, paid from these budgets (None: from all), draws on."""
        if model not in self.models:
            raise ConfigError(f"model {model!r} is not in the pool, which has {list(self.models)}")
        if unknown := [name for name in budgets or () if name not in self.budgets]:
            raise ConfigError(f"budgets: {unknown} not in the ledger, which has {list(self.budgets)}")
        return [*self.models[model], *(limit for b, limit in self.budgets.items() if budgets is None or b in budgets)]

    @property
    def every(self) -> list[Limit]:
        """All of them."""
        return [limit for own in self.models.values() for limit in own] + list(self.budgets.values())

    @property
    def fingerprint(self) -> str:
        """Of the models' names: programs that call the same models count together, also while a limit is changed."""
        return sha256(json.dumps(list(self.models)).encode()).hexdigest()[:16]


class Counter:
    """What one limit has given out: held by calls in flight, and booked in the sub-counters."""

    __slots__ = ("booked", "held", "limit", "overrun", "total")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.held = 0
        self.booked: deque[list[int]] = deque()  # [number of the sub-counter, amount], oldest first
        self.total = 0
        self.overrun = 0

    def used(self, now_us: int) -> int:
        """All that counts now."""
        oldest = now_us // self.limit.part_us - self.limit.parts
        while self.booked and self.booked[0][0] <= oldest:
            self.total -= self.booked.popleft()[1]
        return self.held + self.total

    def wait_us(self, amount: int, now_us: int) -> float:
        """How long until `amount` fits: 0, a time, a guess, or infinite."""
        excess = self.used(now_us) + amount - self.limit.most
        if excess <= 0 or amount == 0:  # what is free of charge waits for no overrun
            return 0
        if amount > self.limit.most:
            return math.inf
        for part, booked in self.booked:
            excess -= booked
            if excess <= 0:
                return (part + self.limit.parts) * self.limit.part_us - now_us
        return GUESS_US

    def take(self, amount: int, now_us: int) -> None:
        """Reserve: a request counts from now on, anything else until a window after its call has ended."""
        if self.limit.kind == "requests":
            self._book(amount, now_us)
        else:
            self.held += amount

    def settle(self, reserved: int, used: int, at_us: int) -> None:
        """End a reservation, at a moment, with what was used."""
        if self.limit.kind == "requests":
            return
        self.held -= reserved
        if self.limit.parts:
            self._book(used, at_us)
            self.overrun += max(0, used - reserved)

    def give_back(self, amount: int, since_us: int) -> None:
        """Undo what was taken at a moment."""
        if self.limit.kind != "requests":
            self.held -= amount
        elif self.booked and since_us // self.limit.part_us >= self.booked[0][0]:
            self._book(-amount, since_us)

    def _book(self, amount: int, at_us: int) -> None:
        part = at_us // self.limit.part_us
        self.total += amount
        later = sum(1 for _ in takewhile(lambda entry: entry[0] > part, reversed(self.booked)))
        place = len(self.booked) - later
        if place and self.booked[place - 1][0] == part:
            self.booked[place - 1][1] += amount
        else:
            self.booked.insert(place, [part, amount])
