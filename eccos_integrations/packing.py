"""What a router consists of, as plain settings and arrays, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eccos_integrations.artifact import Arrays
from eccos_integrations.encoders import ENCODERS, EncoderLike, LexicalEncoder, make_encoder
from eccos_integrations.errors import ArtifactError, ConfigError
from eccos_integrations.policy import Policy
from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.predictors import PREDICTORS, Forecast, ForecastMaker, Predictor
from eccos_integrations.predictors.selection import Trial


@dataclass(frozen=True, eq=False)
class Contents:
    """The arguments of `Router`."""

    pool: ModelPool
    policy: Policy
    best: str
    predictor: ForecastMaker
    sample: Forecast
    trials: Sequence[Trial]


def pack(contents: Contents) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Settings (plain JSON) and arrays by file. No text of the history is in them.

    Raises:
        ConfigError: The predictor is not one of ours.
    """
    predictor = contents.predictor
    if not isinstance(predictor, Predictor):
        raise ConfigError(
            f"predictor: {type(predictor).__name__} cannot be saved; save it yourself and fit again, "
            "or use a built-in predictor"
        )
    encoder = predictor.encoder
    settings = {
        "pool": [model.model_dump(exclude_defaults=True) for model in contents.pool],
        "policy": contents.policy.model_dump(exclude_defaults=True),
        "best": contents.best,
        "predictor": {"name": predictor.name, "settings": predictor.settings()},
        "encoder": {"name": encoder.name, "settings": encoder.settings()},
        "trials": [
            {"predictor": t.predictor, "score": None if np.isnan(t.score) else t.score, "skipped": t.skipped}
            for t in contents.trials
        ],
    }
    files: dict[str, Arrays] = {
        "encoder.npz": encoder.arrays(),
        "predictor.npz": predictor.arrays(),
        "sample.npz": {"quality": contents.sample.quality, "cost_usd": contents.sample.cost_usd},
    }
    return settings, files


def unpack(settings: Mapping[str, Any], files: Mapping[str, Arrays], encoder: EncoderLike | None) -> Contents:
    """The contents that `pack` was given.

    Args:
        settings: As packed.
        files: As packed.
        encoder: Stands in for an encoder that could not be packed.

    Raises:
        ArtifactError: The encoder or the predictor is of a kind this version does not know.
        ConfigError: An encoder is given for one that was packed.
    """
    kinds: dict[str, Mapping[str, Any]] = {"encoder": ENCODERS, "predictor": PREDICTORS}
    for part, known in kinds.items():
        if settings[part]["name"] not in known:
            raise ArtifactError(
                f"{part}: {settings[part]['name']!r} is not one of {list(known)}; upgrade eccos-integrations"
            )
    pool = ModelPool([Model(**model) for model in settings["pool"]])
    saved = settings["encoder"]
    if encoder is not None and saved["name"] == LexicalEncoder.name:
        raise ConfigError("encoder: the router was fitted with the lexical encoder, which was saved with it; "
                          "leave the argument out")  # fmt: skip
    if encoder is None:
        restored = ENCODERS[saved["name"]].restore(saved["settings"], files["encoder.npz"])
    else:
        restored = make_encoder(encoder)
    saved = settings["predictor"]
    sample = files["sample.npz"]
    unknown = np.full(sample["quality"].shape, np.nan)
    return Contents(
        pool=pool,
        policy=Policy(**settings["policy"]),
        best=settings["best"],
        predictor=PREDICTORS[saved["name"]].restore(saved["settings"], files["predictor.npz"], restored, pool),
        sample=Forecast(pool.names, sample["quality"], sample["cost_usd"], unknown, unknown, unknown),
        trials=[
            Trial(t["predictor"], np.nan if t["score"] is None else t["score"], t["skipped"])
            for t in settings["trials"]
        ],
    )
