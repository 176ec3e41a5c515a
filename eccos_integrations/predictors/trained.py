"""ECCOS-T: a small network over the encoder's vectors, trained with torch, run with numpy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.encoders import EncoderLike
from eccos_integrations.errors import ConfigError, MissingExtraError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.predictors.base import PRIOR_STRENGTH, Predictor, Targets

HELD_OUT = 0.15  # share of the history that decides when to stop
PATIENCE = 20  # steps without improvement before training stops
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.05
CHUNK = 4096  # queries estimated at once: bounds the (chunk, M, buckets) array


class TrainedPredictor(Predictor):
    """A capability head and an output-length head over query vectors and learnt model embeddings.

    With q the projected query vector and e_j the embedding of model j, quality is sigmoid(w . (q * e_j) + b_j) and the
    length is the mean under softmax(W (q + e_j) + u) over log-spaced buckets of spend relative to the model's own mean.
    Losses are cross-entropies over the observed cells only; training stops when held-out queries stop improving.

    Source: the predictor of OmniRouter, arXiv 2502.20576 v6, section 3 (there over a fine-tuned BERT).

    Args:
        encoder: See `eccos_integrations.encoders.make_encoder`.
        width: Dimensions of the model embeddings.
        buckets: Number of length buckets.
        steps: Most training steps, each over the whole history.
    """

    name = "trained"

    def __init__(self, encoder: EncoderLike = "lexical", width: int = 32, buckets: int = 12, steps: int = 300) -> None:
        super().__init__(encoder)
        if width < 1 or buckets < 2 or steps < 1:
            raise ConfigError(f"trained: width={width}, buckets={buckets}, steps={steps}; give at least 1, 2 and 1")
        self.width = width
        self.buckets = buckets
        self.steps = steps

    def settings(self) -> dict[str, Any]:
        """Width, buckets and steps."""
        return {"width": self.width, "buckets": self.buckets, "steps": self.steps}

    def _learn(self, vectors: FloatArray, targets: Targets, seed: int) -> dict[str, NDArray[Any]]:
        from threadpoolctl import threadpool_limits

        prior_spend = self._learnt["prior_spend"]
        ratio = np.divide(targets.spend, prior_spend, out=np.full(targets.spend.shape, np.nan), where=prior_spend > 0)
        bucket, bucket_ratio = _bucketed(ratio, self.buckets)
        with threadpool_limits(limits=1):  # small matrices: a second thread waits more than it works
            learnt = _train(
                vectors,
                targets.quality,
                bucket,
                self._learnt["prior_quality"],
                width=self.width,
                buckets=len(bucket_ratio),
                steps=self.steps,
                seed=seed,
            )
        learnt["bucket_ratio"] = bucket_ratio
        self._learnt.update(learnt, correction=np.ones(len(prior_spend)))
        # A mean over buckets is right on average only after each model's sum is set to what was observed.
        forecast = np.where(np.isfinite(targets.spend), self._estimate(vectors)[1], 0.0).sum(axis=0)
        observed = np.nansum(targets.spend, axis=0)
        correction = np.divide(observed, forecast, out=np.ones(len(observed)), where=(forecast > 0) & (observed > 0))
        return {**learnt, "correction": correction}

    def _estimate(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        learnt = self._learnt
        # A model's own head counts as far as its outcomes go; without any it keeps the prior.
        trust = learnt["outcomes"] / (learnt["outcomes"] + PRIOR_STRENGTH)
        quality = np.empty((len(vectors), len(self.pool)))
        spend = np.empty_like(quality)
        for start in range(0, len(vectors), CHUNK):
            part = slice(start, start + CHUNK)
            # einsum sums each row the same way whatever the number of rows; BLAS does not.
            query = np.einsum("nd,dw->nw", vectors[part], learnt["projection"])
            logit = np.einsum("nw,mw->nm", query * learnt["capability"], learnt["embedding"]) + learnt["bias"]
            capable = 1 / (1 + np.exp(-logit))
            quality[part] = learnt["prior_quality"] + trust * (capable - learnt["prior_quality"])
            score = np.einsum("nw,wk->nk", query, learnt["length"])[:, None, :]
            score = score + (learnt["embedding"] @ learnt["length"] + learnt["length_bias"])[None, :, :]
            share = np.exp(score - score.max(axis=2, keepdims=True))
            ratio = (share @ learnt["bucket_ratio"]) / share.sum(axis=2) * learnt["correction"]
            spend[part] = learnt["prior_spend"] * (1 + trust * (ratio - 1))
        return quality, spend


def _bucketed(ratio: FloatArray, buckets: int) -> tuple[NDArray[np.int64], FloatArray]:
    """Bucket of each cell (N, M), -1 where not observed, and the mean ratio within each bucket."""
    observed = ratio[np.isfinite(ratio) & (ratio > 0)]
    if not len(observed):
        return np.full(ratio.shape, -1), np.ones(1)
    low, high = np.quantile(observed, [0.01, 0.99])
    edges = np.geomspace(low, high, buckets - 1) if high > low else np.array([low])
    bucket = np.where(np.isfinite(ratio), np.searchsorted(edges, np.nan_to_num(ratio)), -1)
    used, bucket = np.unique(bucket, return_inverse=True)
    bucket = bucket.reshape(ratio.shape) - (1 if used[0] == -1 else 0)
    means = [float(ratio[bucket == k].mean()) for k in range(bucket.max() + 1)]
    return bucket, np.array(means)


def _train(
    vectors: FloatArray,
    quality: FloatArray,
    bucket: NDArray[np.int64],
    prior_quality: FloatArray,
    *,
    width: int,
    buckets: int,
    steps: int,
    seed: int,
) -> dict[str, NDArray[Any]]:
    """Fit both heads by AdamW on all cells at once; returns the parameters of the best step as float64 arrays."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "neural") from None

    generator = torch.Generator().manual_seed(seed)
    n, dimensions = vectors.shape
    models = quality.shape[1]

    def start(*shape: int, scale: float) -> Any:
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_()

    logit = np.log(np.clip(prior_quality, 0.01, 0.99) / (1 - np.clip(prior_quality, 0.01, 0.99)))
    parameters = {
        "projection": start(dimensions, width, scale=dimensions**-0.5),
        "embedding": start(models, width, scale=0.1),
        "capability": torch.ones(width, requires_grad=True),
        "bias": torch.tensor(logit, dtype=torch.float32, requires_grad=True),
        "length": start(width, buckets, scale=width**-0.5),
        "length_bias": torch.zeros(buckets, requires_grad=True),
    }
    x = torch.tensor(vectors, dtype=torch.float32)
    y = torch.tensor(np.nan_to_num(quality), dtype=torch.float32)
    seen = torch.tensor(np.isfinite(quality), dtype=torch.float32)
    classes = torch.tensor(bucket)

    def loss(rows: Any) -> Any:
        query = x[rows] @ parameters["projection"]
        capable = (query * parameters["capability"]) @ parameters["embedding"].T + parameters["bias"]
        right = torch.nn.functional.binary_cross_entropy_with_logits(capable, y[rows], reduction="none")
        right = (right * seen[rows]).sum() / seen[rows].sum().clamp(min=1)
        score = (query[:, None, :] + parameters["embedding"][None, :, :]) @ parameters["length"]
        score = score + parameters["length_bias"]
        long = torch.nn.functional.cross_entropy(
            score.reshape(-1, buckets), classes[rows].reshape(-1), ignore_index=-1, reduction="sum"
        )
        return right + long / (classes[rows] >= 0).sum().clamp(min=1)

    order = torch.randperm(n, generator=generator)
    held_out = order[: int(n * HELD_OUT)] if n * HELD_OUT >= 1 else order
    training = order[int(n * HELD_OUT) :]
    optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, best_loss, best_step = {}, np.inf, 0
    for step in range(steps):
        with torch.no_grad():
            now = float(loss(held_out))
            if now < best_loss - 1e-6:
                best_loss, best_step = now, step
                best = {name: value.detach().double().numpy().copy() for name, value in parameters.items()}
        if step - best_step > PATIENCE:
            break
        optimizer.zero_grad()
        loss(training).backward()
        optimizer.step()
    return best
