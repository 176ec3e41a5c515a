"""ECCOS-R: what the models did on the most similar past queries."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.encoders import EncoderLike
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.predictors.base import Predictor, Targets

# Neighbours equal to this many digits are ties, and the history's own order breaks them: faiss's rounding depends on
# how many queries are asked at once.
SIMILARITY_DIGITS = 5
CHUNK = 1024  # queries estimated at once: bounds the (chunk, 2 k, D) neighbours' vectors


class RetrievalPredictor(Predictor):
    """Similarity-weighted mean over the k nearest past queries, shrunk towards each model's prior.

    With similarities s and outcomes y of the neighbours that observed model j, the forecast is
    (sum s y + strength * prior) / (sum s + strength). No observed neighbour leaves the prior.

    Source: ECCOS-R of arXiv 2502.20576, k = 16 as in the authors' code (agiresearch/AIOS, EccosRStrategy), which takes
    plain means; the weighting is OmniRouter's (v6), the shrinkage ours.

    Args:
        encoder: See `eccos_integrations.encoders.make_encoder`.
        k: Neighbours asked for.
        strength: How many perfectly similar neighbours the prior is worth.
    """

    name = "retrieval"

    def __init__(self, encoder: EncoderLike = "lexical", k: int = 16, strength: float = 16.0) -> None:
        super().__init__(encoder)
        if k < 1 or not 0 < strength < np.inf:
            raise ConfigError(f"retrieval: k={k}, strength={strength}; k must be at least 1 and strength positive")
        self.k = k
        self.strength = strength
        self._index: Any = None

    def _learn(self, vectors: FloatArray, targets: Targets, seed: int) -> dict[str, NDArray[Any]]:
        self._index = None
        return {"vectors": vectors.astype(np.float32), "quality": targets.quality, "spend": targets.spend}

    def _estimate(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        parts = [self._estimate_part(vectors[start : start + CHUNK]) for start in range(0, len(vectors), CHUNK)]
        return np.concatenate([quality for quality, _ in parts]), np.concatenate([spend for _, spend in parts])

    def _estimate_part(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        similarity, rows = self._neighbours(vectors)
        prior_quality, prior_spend = self._learnt["prior_quality"], self._learnt["prior_spend"]
        return (
            _weighted_mean(similarity, self._learnt["quality"][rows], prior_quality, self.strength),
            _weighted_mean(similarity, self._learnt["spend"][rows], prior_spend, self.strength),
        )

    def _neighbours(self, vectors: FloatArray) -> tuple[FloatArray, NDArray[np.int64]]:
        """Similarities in 0..1 and rows of the nearest past queries, (N, k) each."""
        if self._index is None:  # built from the vectors, after fitting and after loading alike
            self._index = _index(self._learnt["vectors"])
        k = min(self.k, self._index.ntotal)
        # faiss proposes twice as many as needed; the exact order is settled here, the same for one query or many.
        _, rows = self._index.search(vectors.astype(np.float32), min(2 * k, self._index.ntotal))
        rows = np.sort(rows, axis=1)
        similarity = np.einsum("nd,nkd->nk", vectors, self._learnt["vectors"][rows], dtype=np.float64)
        similarity = np.clip(similarity.round(SIMILARITY_DIGITS), 0, 1)
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(similarity, nearest, axis=1), np.take_along_axis(rows, nearest, axis=1)

    def settings(self) -> dict[str, Any]:
        """K and strength."""
        return {"k": self.k, "strength": self.strength}


def _index(vectors: NDArray[Any]) -> Any:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return index


def _weighted_mean(similarity: FloatArray, outcomes: FloatArray, prior: FloatArray, strength: float) -> FloatArray:
    """(N, M) from similarities (N, k) and neighbours' outcomes (N, k, M), NaN = not observed."""
    observed = np.isfinite(outcomes)
    weight = np.einsum("nk,nkm->nm", similarity, observed)
    total = np.einsum("nk,nkm->nm", similarity, np.where(observed, outcomes, 0.0))
    mean: FloatArray = (total + strength * prior) / (weight + strength)
    return mean
