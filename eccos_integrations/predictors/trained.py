"""ECCOS-T: networks over what queries look like and what models are called, trained with torch, run with numpy."""

import logging
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.encoders import EncoderLike
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors.base import Estimate, Predictor, composed, routed_cost_of
from eccos_integrations.predictors.history import PRIOR_STRENGTH, QUALITY, SPEND, Arrays, History
from eccos_integrations.predictors.kinship import words_of
from eccos_integrations.predictors.network import Lesson, heads, one_thread, training

FOLDS = 5  # networks, each blind to one part of the history
EVERY = 20  # steps between looks at the held-out parts
WINDOW = 5  # looks whose mean decides: one routed cost is too noisy
TIE = 0.01  # routed costs this close are the same, and the more trained networks are taken
PATIENCE = 8  # looks without a best or a tie before training stops
TRUST = 10.0  # outcomes after which a model relies on the networks as much as on its mean
DESCRIBED = 64  # hashed words of names and descriptions
SHARED = 0.25  # how much more readily a model's own embedding is learnt than what it shares with others
CHUNK = 512  # queries estimated at once: bounds the (chunk, M, buckets) arrays

logger = logging.getLogger("eccos")


class TrainedPredictor(Predictor):
    """A capability head and an output-length head over projected queries and model embeddings.

    With q the projected query and e_j the embedding of model j (learnt, plus a linear map of the words of its name and
    description), quality is sigmoid(q . e_j + b_j). Spend falls into log-spaced buckets with the chances
    softmax(W (q + e_j) + u + (q . e_j) t), t being what the buckets stand for: the mean is the forecast, the quantiles
    its range. Each head has a projection and embeddings of its own, penalised strongly.
    Several networks are trained side by side, each without one fold of the history, and averaged; a fold is forecast by
    the one that did not see it. They stop where routing by these held-out forecasts costs least.
    More outcomes move a model's mean at once, but the networks learn from them only by a refit.

    Source: the predictor of OmniRouter, arXiv 2502.20576 v6, section 3. There it is one fine-tuned BERT for queries and
    descriptions, and the length head has no third term; the penalty, the folds and the stopping are ours.

    Args:
        encoder: See `eccos_integrations.encoders.make_encoder`.
        width: Dimensions of the model embeddings.
        buckets: Number of length buckets.
        steps: Most training steps.
    """

    name = "trained"
    per_model = {"embedding": 0.0, "bias": 0.0, "trust": 0.0}  # noqa: RUF012

    def __init__(self, encoder: EncoderLike = "lexical", width: int = 16, buckets: int = 12, steps: int = 300) -> None:
        super().__init__(encoder)
        if width < 1 or buckets < 2 or steps < 1:
            raise ConfigError(f"trained: width={width}, buckets={buckets}, steps={steps}; give at least 1, 2 and 1")
        self.width = width
        self.buckets = buckets
        self.steps = steps

    def settings(self) -> dict[str, Any]:
        """Width, buckets and steps."""
        return {"width": self.width, "buckets": self.buckets, "steps": self.steps}

    def learn(self, history: History, pool: ModelPool, arrays: Arrays, seed: int) -> Arrays:
        """Train the networks; they see queries, outcomes, and the names and descriptions of models."""
        bucket, scale = _bucketed(history.values[:, SPEND], self.buckets)
        fold = _folds(history.x)
        count = np.bincount(bucket[bucket >= 0], minlength=len(scale["centre"]))
        lesson = Lesson(
            x=history.x,
            quality=history.values[:, QUALITY],
            bucket=bucket,
            words=_described(pool),
            fold=fold,
            bias=_log_odds(history.values[:, QUALITY], fold, arrays["kin_mean"][QUALITY]),
            length_bias=np.log(count + 0.5),
            tilt=(scale["centre"] - scale["centre"].mean()) / max(scale["centre"].std(), 1e-9),
        )
        scale["trust"] = arrays["count"] / (arrays["count"] + TRUST)
        looks: list[Arrays] = []
        costs: list[float] = []
        with one_thread():
            for step, learnt in training(lesson, width=self.width, steps=self.steps, every=EVERY, seed=seed):
                looks.append(learnt | scale)
                known = arrays | looks[-1]
                costs.append(routed_cost_of(self.held_out(history, known), history, pool, known))
                logger.info("trained: step %d of at most %d, held-out routed cost %.3f", step, self.steps, costs[-1])
                if len(costs) - 1 - chosen_look(costs) >= PATIENCE:
                    break
        return looks[chosen_look(costs)]

    def estimate(self, x: FloatArray, arrays: Arrays) -> Estimate:
        """The mean of the networks, as far as a model's outcomes let them be trusted."""
        values = np.empty((len(x), 2, arrays["bias"].shape[1]))
        for start in range(0, len(x), CHUNK):
            values[start : start + CHUNK], _ = _said(x[start : start + CHUNK], arrays)

        def spend_range() -> tuple[FloatArray, FloatArray]:
            spend = composed(estimate, arrays)[:, SPEND]  # the range moves along as the mean is shrunk
            spread = np.empty((len(x), 2, values.shape[2]))
            for start in range(0, len(x), CHUNK):
                _, share = _said(x[start : start + CHUNK], arrays)
                below = np.cumsum(share, axis=-1)
                for side, level in enumerate((0.1, 0.9)):
                    quantile = _quantile(below, share, level, arrays["edge"])
                    spread[start : start + CHUNK, side] = quantile - share @ arrays["centre"]
            return spend + spread[:, 0], spend + spread[:, 1]

        weight = np.broadcast_to(arrays["trust"], values.shape)
        estimate = Estimate(weight * values, weight, spend_range)
        return estimate

    def held_out(self, history: History, arrays: Arrays) -> Estimate:
        """For each query what the network says that did not see it."""
        values = np.empty(history.values.shape)
        fold = _folds(history.x)
        for network in range(len(arrays["bias"])):
            rows = np.flatnonzero(fold == network)
            for start in range(0, len(rows), CHUNK):
                part = rows[start : start + CHUNK]
                values[part], _ = _said(history.x[part], arrays, slice(network, network + 1))
        weight = np.broadcast_to(arrays["trust"], values.shape)
        return Estimate(weight * values, weight)

    def learn_more(self, x: FloatArray, values: FloatArray, arrays: Arrays) -> Arrays:
        """Nothing: the networks learn anew with a refit only."""
        return {}


def chosen_look(costs: list[float]) -> int:
    """The look about which routing costs least on average; of several that are about the same, the last."""
    reach = WINDOW // 2
    smooth = np.array([np.mean(costs[max(look - reach, 0) : look + reach + 1]) for look in range(len(costs))])
    return int(np.flatnonzero(smooth <= smooth.min() + TIE)[-1])


def _said(x: FloatArray, arrays: Arrays, networks: slice = slice(None)) -> tuple[FloatArray, FloatArray]:
    """What the networks say on average: (N, 2, M) values, and the share of each bucket of spend (N, M, K)."""
    names = ("projection", "embedding", "bias", "length", "length_bias")
    right, long = heads(x, {name: arrays[name][networks] for name in names} | {"tilt": arrays["tilt"]})
    long = np.exp(long - long.max(axis=-1, keepdims=True))
    share = (long / long.sum(axis=-1, keepdims=True)).mean(axis=0)
    quality = (1 / (1 + np.exp(-right))).mean(axis=0)
    return np.stack([quality, share @ arrays["centre"]], axis=1), share


def _quantile(below: FloatArray, share: FloatArray, level: float, edge: FloatArray) -> FloatArray:
    """Where the cumulated shares (N, M, K) of the buckets between these edges (K + 1) reach a level, (N, M)."""
    k = np.minimum((below < level).sum(axis=-1), len(edge) - 2)
    inside = np.take_along_axis(share, k[..., None], axis=-1)[..., 0]
    before = np.take_along_axis(below, k[..., None], axis=-1)[..., 0] - inside
    within = np.clip((level - before) / np.maximum(inside, 1e-12), 0, 1)
    quantile: FloatArray = edge[k] + within * (edge[k + 1] - edge[k])
    return quantile


def _bucketed(value: FloatArray, buckets: int) -> tuple[NDArray[np.int64], Arrays]:
    """Bucket of each cell (N, M), -1 where not observed; the K + 1 edges of the buckets, and the mean value in each."""
    observed = value[np.isfinite(value)]
    if not len(observed):
        return np.full(value.shape, -1), {"edge": np.zeros(2), "centre": np.zeros(1)}
    low, high = np.quantile(observed, [0.01, 0.99])
    inner = np.linspace(low, high, buckets - 1) if high > low else np.zeros(0)
    edge = np.array([observed.min(), *inner, observed.max()])
    found = np.searchsorted(inner, observed)
    count = np.bincount(found, minlength=len(inner) + 1)
    total = np.bincount(found, weights=observed, minlength=len(inner) + 1)
    bucket = np.full(value.shape, -1)
    bucket[np.isfinite(value)] = found
    centre = np.where(count > 0, total / np.maximum(count, 1), (edge[:-1] + edge[1:]) / 2)
    return bucket, {"edge": edge, "centre": centre}


def _folds(x: FloatArray) -> NDArray[np.int64]:
    """(N,) the fold of each query; queries that look the same share one."""
    rows = np.ascontiguousarray(x).view(np.dtype((np.void, x.dtype.itemsize * x.shape[1])))[:, 0]
    _, first, same = np.unique(rows, return_index=True, return_inverse=True)
    folds: NDArray[np.int64] = np.argsort(np.argsort(first))[same] % FOLDS
    return folds


def _log_odds(quality: FloatArray, fold: NDArray[np.int64], prior: FloatArray) -> FloatArray:
    """(F, M) of each model's mean quality outside of each fold, drawn towards the prior."""
    means = []
    for network in range(fold.max() + 1):
        outside = quality[fold != network]
        observed = np.isfinite(outside)
        total = np.where(observed, outside, 0.0).sum(axis=0) + PRIOR_STRENGTH * prior
        means.append(total / (observed.sum(axis=0) + PRIOR_STRENGTH))
    mean = np.clip(means, 0.01, 0.99)
    log_odds: FloatArray = np.log(mean / (1 - mean))
    return log_odds


def _described(pool: ModelPool) -> FloatArray:
    """(M, 1 + DESCRIBED): what all models share beside hashed words of each one's name and description."""
    words = np.zeros((len(pool), DESCRIBED))
    for j, model in enumerate(pool):
        for word in sorted(words_of(model)):
            code = crc32(word.encode())
            words[j, code % DESCRIBED] += 1.0 if code & (1 << 31) else -1.0
    words /= np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1.0)
    return SHARED * np.hstack([np.ones((len(pool), 1)), words])
