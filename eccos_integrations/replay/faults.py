"""What goes wrong at a provider, on purpose: errors, hangs, slow and malformed answers, cut streams."""

import json
import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from eccos_integrations.errors import EccosError
from eccos_integrations.settings import Settings

Kind = Literal["error", "hang", "slow", "malformed", "cut"]
Rate = Annotated[float, Field(ge=0, le=1)]


class ReplayError(EccosError):
    """A provider's answer with an error status.

    Attributes:
        status_code: As of HTTP.
        retry_after: Seconds after which to come back, of a 429.
        headers: As of HTTP, names in lower case.
    """

    def __init__(self, message: str, status_code: int, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.retry_after = retry_after
        self.headers: Mapping[str, str] = {}
        if retry_after is not None:  # the header has whole seconds; clients that know the other one prefer it
            milliseconds = math.ceil(retry_after * 1000)
            self.headers = {"retry-after": str(math.ceil(retry_after)), "retry-after-ms": str(milliseconds)}


class MalformedError(EccosError, json.JSONDecodeError):
    """An answer that is not JSON."""

    def __init__(self) -> None:
        super().__init__("replay: a malformed answer, injected", "", 0)


class CutError(EccosError, ConnectionError):
    """The connection ended before the answer did."""


class Faults(Settings):
    """How often a call goes wrong; of one call at most one thing does.

    A draw depends on the seed, the model, the prompt and how often this model was asked this prompt, not on the order
    of the calls: so it is the same for any number of threads, and a second try may go well.

    Args:
        error_rate: Part of the calls that answer 500 instead.
        hang_rate: Part of the calls that answer nothing for `hang_s`, then 504.
        slow_rate: Part of the calls that take `slow_factor` times as long.
        malformed_rate: Part of the calls whose answer is not JSON.
        cut_rate: Part of the calls whose connection ends half-way.
        hang_s: Seconds; they pass at any speed of the provider.
        slow_factor: How much longer a slow call takes.
        seed: Of the draws.

    Raises:
        ConfigError: A field is unknown or out of range, or the rates sum to more than 1.

    Example:
        >>> faults = Faults(error_rate=0.5, seed=1)
        >>> [faults.draw("small", "2+2?", attempt) for attempt in range(4)]
        ['error', None, 'error', None]
    """

    error_rate: Rate = 0.0
    hang_rate: Rate = 0.0
    slow_rate: Rate = 0.0
    malformed_rate: Rate = 0.0
    cut_rate: Rate = 0.0
    hang_s: NonNegativeFloat = 30.0
    slow_factor: Annotated[float, Field(ge=1)] = 10.0
    seed: int = 0

    @model_validator(mode="after")
    def _rates_leave_room(self) -> Self:
        if self.rate > 1 + 1e-9:
            raise ValueError(f"the rates sum to {self.rate:g}; give at most 1 in all")
        return self

    @property
    def rate(self) -> float:
        """Part of the calls with which anything goes wrong."""
        return sum(rate for _, rate in self._rates)

    @property
    def _rates(self) -> tuple[tuple[Kind, float], ...]:
        return (
            ("error", self.error_rate),
            ("hang", self.hang_rate),
            ("slow", self.slow_rate),
            ("malformed", self.malformed_rate),
            ("cut", self.cut_rate),
        )

    def draw(self, model: str, prompt: str, attempt: int) -> Kind | None:
        """What goes wrong with the call in which this model is asked this prompt for this time; None: nothing."""
        key = f"{self.seed}\0{attempt}\0{model}\0{prompt}".encode(errors="surrogatepass")
        left = int.from_bytes(blake2b(key, digest_size=8).digest(), "big") / 2**64
        for kind, rate in self._rates:
            if left < rate:
                return kind
            left -= rate
        return None
