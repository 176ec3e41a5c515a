"""Several encoders at once."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.encoders.base import Encoder, unit
from eccos_integrations.errors import ArtifactError, ConfigError
from eccos_integrations.outcomes import FloatArray


class ConcatenatedEncoder(Encoder):
    """The vectors of several encoders side by side, each of equal weight among those that know something of the text.

    Args:
        encoders: At least one.

    Raises:
        ConfigError: There is none.
    """

    name = "concatenated"

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        if not encoders:
            raise ConfigError("encoder: an empty list; name at least one encoder")
        self.encoders = tuple(encoders)

    def fit(self, texts: Sequence[str], *, seed: int = 0) -> Self:
        """Learn what each encoder needs from the texts of the history."""
        for encoder in self.encoders:
            encoder.fit(texts, seed=seed)
        return self

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of the texts, (N, the sum of all D)."""
        return unit(np.hstack([encoder.encode(texts) for encoder in self.encoders]))

    def unfitted(self) -> Self:
        """Encoders of the same settings that have learnt nothing yet."""
        return type(self)([encoder.unfitted() for encoder in self.encoders])

    def settings(self) -> dict[str, Any]:
        """Name and settings of each encoder."""
        return {"encoders": [{"name": encoder.name, "settings": encoder.settings()} for encoder in self.encoders]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of all encoders, those of the first under names that start with `0.`."""
        return {
            f"{i}.{name}": array for i, encoder in enumerate(self.encoders) for name, array in encoder.arrays().items()
        }

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The encoder that `settings` and `arrays` were taken from.

        Raises:
            ArtifactError: One of the encoders cannot be restored.
        """
        from eccos_integrations.encoders import ENCODERS

        encoders = []
        for i, part in enumerate(settings["encoders"]):
            if part["name"] not in ENCODERS:
                raise ArtifactError(
                    f"encoder: {part['name']!r} is not one of {list(ENCODERS)}; upgrade eccos-integrations"
                )
            own = {name.removeprefix(f"{i}."): array for name, array in arrays.items() if name.startswith(f"{i}.")}
            encoders.append(ENCODERS[part["name"]].restore(part["settings"], own))
        return cls(encoders)
