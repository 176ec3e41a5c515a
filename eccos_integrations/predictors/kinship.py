"""Which models are alike before any outcome is known: by price, name and description."""

import re

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.outcomes import FloatArray
from eccos_integrations.pool import Model, ModelPool

CLOSE = np.log(4)  # prices that differ by this factor make models half strangers
SHARED_WORDS = 4.0  # how many times closer a model is that shares every word of name and description
ENOUGH = 20.0  # outcomes after which a model has as much to lend as it keeps back


def kinship(pool: ModelPool, typical_spend: FloatArray, in_usd: NDArray[np.bool_], outcomes: FloatArray) -> FloatArray:
    """How much each model resembles each other one, (M, M): rows sum to 1, or are 0 where nobody has outcomes.

    Args:
        pool: M models.
        typical_spend: (M,) what a call uses up, 0 where that is not known.
        in_usd: (M,) whether that is money, else output tokens.
        outcomes: (M,) how often each was observed; who was not has nothing to lend.
    """
    per_token = np.array([m.output_usd_per_million_tokens if m.has_prices else np.nan for m in pool], dtype=np.float64)
    price = np.log(np.maximum(np.where(in_usd, typical_spend, per_token), 1e-12))
    apart = np.where(in_usd[:, None] == in_usd, price[:, None] - price, np.nan) / CLOSE
    near = np.where(np.isfinite(apart), np.exp(-0.5 * np.nan_to_num(apart) ** 2), 0.5)  # 0.5: cannot be compared
    words = [words_of(model) for model in pool]
    shared = np.array([[len(a & b) / max(len(a | b), 1) for b in words] for a in words])
    kin = (near + 1e-3) * (1 + SHARED_WORDS * shared) * outcomes / (outcomes + ENOUGH)
    np.fill_diagonal(kin, 0.0)
    total = kin.sum(axis=1, keepdims=True)
    shares: FloatArray = np.divide(kin, total, out=np.zeros_like(kin), where=total > 0)
    return shares


def words_of(model: Model) -> set[str]:
    """Words and numbers of a model's name and description."""
    return set(re.findall(r"[a-z]+|\d+", f"{model.name} {model.description}".lower()))
