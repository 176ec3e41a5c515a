"""What a router consists of, as plain settings and arrays, and back."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np

from eccos_integrations.artifact import Arrays
from eccos_integrations.encoders import ENCODERS, Encoder, EncoderLike, make_encoder
from eccos_integrations.errors import ArtifactError, ConfigError
from eccos_integrations.guarantee import Evidence
from eccos_integrations.learnt import Learnt
from eccos_integrations.outcomes import MEASURES, OutcomeTable
from eccos_integrations.policy import Policy
from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.predictors import PREDICTORS, Predictor
from eccos_integrations.predictors.calibration import Calibration
from eccos_integrations.predictors.selection import Trial

EVIDENCE = tuple(part.name for part in fields(Evidence))


def pack(learnt: Learnt, fitted: Learnt, online: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Settings (plain JSON) and arrays by file. No text of the history is in them, unless it was asked for at fit.

    Args:
        learnt: What the router knows now.
        fitted: What its certificates are about: the same, or as it was before feedback.
        online: State of exploration and drift, plain JSON.

    Raises:
        ConfigError: The predictor is not one of ours.
    """
    predictor = _ours(learnt)
    encoder = predictor.encoder
    settings = {
        "encoder": {"name": encoder.name, "settings": encoder.settings()},
        "now": _settings(learnt),
        "fitted": None if fitted is learnt else _settings(fitted),
        "online": dict(online),
    }
    files: dict[str, Arrays] = {
        "encoder.npz": encoder.arrays(),
        "predictor.npz": predictor.arrays(),
        "evidence.npz": _evidence(learnt),
        "fitted.npz": {} if fitted is learnt else _ours(fitted).arrays(),
        "fitted_evidence.npz": {} if fitted is learnt else _evidence(fitted),
        "outcomes.npz": {} if fitted.outcomes is None else _words(fitted.outcomes),
    }
    return settings, files


def unpack(
    settings: Mapping[str, Any], files: Mapping[str, Arrays], encoder: EncoderLike | None
) -> tuple[Learnt, Learnt, Mapping[str, Any]]:
    """What `pack` was given.

    Args:
        settings: As packed.
        files: As packed.
        encoder: Stands in for an encoder that could not be packed.

    Raises:
        ArtifactError: The encoder or the predictor is of a kind this version does not know.
        ConfigError: An encoder is given for one that was packed.
    """
    saved = settings["encoder"]
    if saved["name"] not in ENCODERS:
        raise ArtifactError(f"encoder: {saved['name']!r} is not one of {list(ENCODERS)}; upgrade eccos-integrations")
    if encoder is None:
        restored = ENCODERS[saved["name"]].restore(saved["settings"], files["encoder.npz"])
    elif files["encoder.npz"]:  # it was learnt from the history, or carries weights of its own
        raise ConfigError(f"encoder: the router was fitted with the {saved['name']} encoder, which was saved with it; "
                          "leave the argument out")  # fmt: skip
    else:
        restored = make_encoder(encoder)
    outcomes = _table(files["outcomes.npz"]) if files["outcomes.npz"] else None
    now = _learnt(settings["now"], files["predictor.npz"], files["evidence.npz"], restored, outcomes)
    if settings["fitted"] is None:
        return now, now, settings["online"]
    fitted = _learnt(settings["fitted"], files["fitted.npz"], files["fitted_evidence.npz"], restored, outcomes)
    if settings["fitted"]["pool"] == settings["now"]["pool"]:
        now = replace(now, pool=fitted.pool)  # the same pool, not merely an equal one
    return now, fitted, settings["online"]


def _ours(learnt: Learnt) -> Predictor:
    if not isinstance(learnt.predictor, Predictor):
        raise ConfigError(
            f"predictor: {type(learnt.predictor).__name__} cannot be saved; save it yourself and fit again, "
            "or use a built-in predictor"
        )
    return learnt.predictor


def _settings(learnt: Learnt) -> dict[str, Any]:
    predictor = _ours(learnt)
    return {
        "pool": [model.model_dump(exclude_defaults=True) for model in learnt.pool],
        "policy": learnt.policy.model_dump(exclude_defaults=True),
        "best": learnt.best,
        "predictor": {"name": predictor.name, "settings": predictor.settings()},
        "calibration": asdict(learnt.calibration),
        "trials": [asdict(t) | {"score": None if np.isnan(t.score) else t.score} for t in learnt.trials],
    }


def _learnt(
    settings: Mapping[str, Any], arrays: Arrays, evidence: Arrays, encoder: Encoder, outcomes: OutcomeTable | None
) -> Learnt:
    pool = ModelPool([Model(**model) for model in settings["pool"]])
    kind = settings["predictor"]["name"]
    if kind not in PREDICTORS:
        raise ArtifactError(f"predictor: {kind!r} is not one of {list(PREDICTORS)}; upgrade eccos-integrations")
    parts = {
        part: Evidence(*(evidence[f"{part}.{name}"] for name in EVIDENCE))
        for part in ("history", "held_out")
        if f"{part}.quality" in evidence
    }
    return Learnt(
        pool=pool,
        policy=Policy(**settings["policy"]),
        best=settings["best"],
        predictor=PREDICTORS[kind].restore(settings["predictor"]["settings"], dict(arrays), encoder, pool),
        history=parts["history"],
        held_out=parts.get("held_out"),
        calibration=Calibration(**settings["calibration"]),
        trials=[Trial(**t | {"score": np.nan if t["score"] is None else t["score"]}) for t in settings["trials"]],
        outcomes=outcomes,
    )


def _evidence(learnt: Learnt) -> Arrays:
    parts = {"history": learnt.history, "held_out": learnt.held_out}
    return {
        f"{part}.{name}": getattr(evidence, name)
        for part, evidence in parts.items()
        if evidence is not None
        for name in EVIDENCE
    }


def _words(table: OutcomeTable) -> Arrays:
    """The table as arrays; its words as UTF-8 bytes beside where each ends."""
    arrays: dict[str, Any] = {name: getattr(table, name) for name in MEASURES}
    for name in ("query_ids", "queries", "models"):
        raw = [word.encode("utf-8", "surrogatepass") for word in getattr(table, name)]
        arrays[name] = np.frombuffer(b"".join(raw), dtype=np.uint8)
        arrays[f"{name}_end"] = np.cumsum([len(word) for word in raw])
    return arrays


def _table(arrays: Arrays) -> OutcomeTable:
    words = {}
    for name in ("query_ids", "queries", "models"):
        raw, ends = arrays[name].tobytes(), arrays[f"{name}_end"].tolist()
        words[name] = [
            raw[start:end].decode("utf-8", "surrogatepass") for start, end in zip([0, *ends], ends, strict=False)
        ]
    return OutcomeTable(tasks=None, **words, **{name: arrays[name] for name in MEASURES})  # type: ignore[arg-type]
