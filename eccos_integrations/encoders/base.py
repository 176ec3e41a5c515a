"""What every text encoder does."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.outcomes import FloatArray

AT_ONCE = 256


class Encoder(ABC):
    """Turns texts into vectors of unit length (or zero, where a text says nothing the encoder knows).

    Two calls make one: `fit` on the texts of the history, then `encode` any texts. One text at a time or many at once
    gives the same vectors.
    """

    name: str

    def fit(self, texts: Sequence[str], *, seed: int = 0) -> Self:  # most encoders learn nothing here
        """Learn what is needed from the texts of the history."""
        return self

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of the texts, (N, D)."""

    def unfitted(self) -> Self:
        """An encoder of the same settings that has learnt nothing yet; the same one where nothing is ever learnt."""
        return self

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `restore` needs beside the arrays; plain JSON, no words of the history."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was learnt, as arrays."""
        return {}

    @classmethod
    @abstractmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The encoder that `settings` and `arrays` were taken from."""


def unit(vectors: FloatArray) -> FloatArray:
    """The vectors scaled to unit length; zeros stay zeros."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    scaled: FloatArray = vectors / np.where(lengths > 0, lengths, 1.0)
    return scaled


def parts(n: int) -> list[slice]:
    """Slices of n texts, a few hundred each, so that what is made of a slice needs little memory."""
    return [slice(start, start + AT_ONCE) for start in range(0, n, AT_ONCE)]
