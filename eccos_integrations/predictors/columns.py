"""One model more, one model less: the columns of what was learnt."""

from collections.abc import Mapping

import numpy as np

from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray, OutcomeTable, column_means
from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.predictors.history import PRIOR_STRENGTH, QUALITY, Arrays, input_token_rates, mean_of_kin
from eccos_integrations.predictors.kinship import kinship

# Of every predictor: name, and what a new column starts with; NaN takes the mean of the others.
SHARED: Mapping[str, float] = {
    "spend_in_usd": 0.0,
    "typical_spend": np.nan,
    "kin_mean": 0.0,
    "total": 0.0,
    "count": 0.0,
    "input_tokens": np.nan,
    "latency_s": 0.0,
    "variance": np.nan,
    "smearing": np.nan,
    "low": np.nan,
    "high": np.nan,
}


def with_model(
    pool: ModelPool, arrays: Arrays, model: Model, known: OutcomeTable | None, per_model: Mapping[str, float]
) -> tuple[ModelPool, Arrays]:
    """Pool and arrays with a column for the model, at its prior: the one of models of like price and description.

    Args:
        pool: Sorted by name.
        arrays: What a predictor learnt.
        model: The new one.
        known: Its outcomes if there are any: they say in what unit it is paid for, how it counts input tokens and how
            long it takes. Its quality and spend are not learnt here.
        per_model: Names of arrays beside `SHARED` whose last axis is the model, and their start.

    Raises:
        ConfigError: The model is there already, or its cost cannot be known.
    """
    if model.name in pool:
        raise ConfigError(f"model: {model.name!r} is in the pool already; remove it first, or give another name")
    in_usd, typical = _unit_of_spend(arrays, model, known)
    wider = ModelPool(sorted([*pool, model], key=lambda one: one.name))
    at = wider.names.index(model.name)
    arrays = dict(arrays)
    for name, start in {**SHARED, **per_model}.items():
        column = arrays[name].mean(axis=-1) if np.isnan(start) and name in SHARED else start
        arrays[name] = np.insert(arrays[name], at, column, axis=-1)
    arrays["spend_in_usd"][at], arrays["typical_spend"][at], arrays["latency_s"][at] = in_usd, typical, np.nan
    if known is not None and np.isfinite(known.input_tokens).any():
        arrays["input_tokens"][:, at] = input_token_rates(known)[:, 0]
    if known is not None:
        arrays["latency_s"][at] = column_means(known.latency_s)[0]
    arrays["variance"][at] = np.delete(arrays["variance"], at).max()  # nobody is surer of it than of any other
    arrays["kin"] = np.insert(np.insert(arrays["kin"], at, 0.0, axis=0), at, 0.0, axis=1)
    outcomes = arrays["count"][QUALITY]
    arrays["kin"][at] = kinship(wider, arrays["typical_spend"], arrays["spend_in_usd"], outcomes)[at]
    arrays["kin_mean"][:, at] = mean_of_kin(arrays["kin"], arrays["total"], arrays["count"])[:, at]
    return wider, arrays


def without_model(
    pool: ModelPool, arrays: Arrays, name: str, per_model: Mapping[str, float]
) -> tuple[ModelPool, Arrays]:
    """Pool and arrays without the model; who borrowed from it borrows from the rest.

    Raises:
        ConfigError: The model is not in the pool, or the last one.
    """
    if len(pool) == 1 and name in pool:
        raise ConfigError(f"model: {name!r} is the only one; a predictor needs at least one")
    at = pool.names.index(pool[name].name)
    arrays = dict(arrays)
    for key in {**SHARED, **per_model}:
        arrays[key] = np.delete(arrays[key], at, axis=-1)
    kin = np.delete(arrays["kin"], at, axis=0)
    rest = 1 - kin[:, [at]]  # exactly 1 for who never borrowed from it: not a bit changes
    kin = np.delete(kin, at, axis=1)
    arrays["kin"] = np.divide(kin, rest, out=np.zeros_like(kin), where=kin.any(axis=1, keepdims=True))
    return ModelPool([model for model in pool if model.name != name]), arrays


def _unit_of_spend(arrays: Arrays, model: Model, known: OutcomeTable | None) -> tuple[bool, float]:
    """Whether the model is paid for by the call, not by the token, and its typical spend."""

    def observed(values: FloatArray) -> FloatArray:
        return values[np.isfinite(values)]

    tokens = np.zeros(0) if known is None else observed(known.output_tokens)
    cost = np.zeros(0) if known is None else observed(known.cost_usd)
    in_usd = not model.has_prices or (not len(tokens) and len(cost) > 0)
    spend = cost if in_usd else tokens
    alike = arrays["typical_spend"][arrays["spend_in_usd"] == in_usd]
    if not len(spend) and (in_usd or not len(alike)):
        lacks = "no price is known" if in_usd else "no output_tokens are known to apply its prices to"
        raise ConfigError(f"cost_usd: model {model.name!r} has no observed cost and {lacks}; "
                          "give it prices, or outcomes with cost_usd")  # fmt: skip
    prior = float(alike.mean()) if len(alike) else float(spend.mean())
    return in_usd, float((spend.sum() + PRIOR_STRENGTH * prior) / (len(spend) + PRIOR_STRENGTH))
