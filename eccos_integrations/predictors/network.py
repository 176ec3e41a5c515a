"""The networks of ECCOS-T: several side by side, each blind to one fold of the history. Trained with torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.errors import MissingExtraError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.predictors.history import QUALITY, SPEND, Arrays

BATCH = 256
LEARNING_RATE = 0.01
START = 0.1  # standard deviation of the weights at the start
# On the squares of both factors of a product, so on its nuclear norm: directions in which too few outcomes agree are
# not learnt at all. Times the root of the number of queries, for so grows what random outcomes seem to agree on.
PENALTIES = (0.25, 0.125)  # capability, length
LENGTH_PENALTY = 3.0
BIAS_PENALTY = 1.0
LEAST_DISPERSION = 0.05


@dataclass(frozen=True, eq=False)
class Lesson:
    """What F networks are to learn of N queries, M models, K buckets of length.

    Args:
        x: (N, D) what the queries look like.
        quality: (N, M) in 0..1; NaN = not observed.
        bucket: (N, M) bucket of what the call used up; -1 = not observed.
        words: (M, V) what names and descriptions say.
        fold: (N,) the network that must not see the query, 0..F-1.
        bias: (F, M) log-odds of each model's quality before anything is learnt.
        length_bias: (K,) log-odds of the buckets before.
        tilt: (K,) what a bucket stands for, standardised.
    """

    x: FloatArray
    quality: FloatArray
    bucket: NDArray[np.int64]
    words: FloatArray
    fold: NDArray[np.int64]
    bias: FloatArray
    length_bias: FloatArray
    tilt: FloatArray


@contextmanager
def one_thread() -> Iterator[None]:
    """Training on one thread: the matrices are small, and a second thread waits more than it works.

    Raises:
        MissingExtraError: There is no torch.
    """
    from threadpoolctl import threadpool_limits

    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "neural") from None
    threads = torch.get_num_threads()
    with threadpool_limits(limits=1):  # after the import: it limits what is loaded
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def heads(x: Any, learnt: Any) -> tuple[Any, Any]:
    """Log-odds of a right answer (F, N, M) and of each length bucket (F, N, M, K), of numpy arrays or torch tensors."""
    query = x @ learnt["projection"]
    match = query @ learnt["embedding"]
    of_query = query[:, SPEND] @ learnt["length"]
    of_model = learnt["embedding"][:, SPEND].mT @ learnt["length"] + learnt["length_bias"][:, None]
    long = of_query[:, :, None] + of_model[:, None] + match[:, SPEND, :, :, None] * learnt["tilt"]
    return match[:, QUALITY] + learnt["bias"][:, None], long


def training(lesson: Lesson, *, width: int, steps: int, every: int, seed: int) -> Iterator[tuple[int, Arrays]]:
    """Train by Adam on random batches; now and then gives the number of steps taken and what `heads` needs.

    A capability loss counts as much as its labels are certain: graded quality that hardly varies says more than a
    right/wrong label does (the dispersion of a quasi-binomial model, McCullagh and Nelder, 1989, chapter 4).
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    generator = torch.Generator().manual_seed(seed)
    networks, models = lesson.bias.shape
    dimensions, described, buckets = lesson.x.shape[1], lesson.words.shape[1], len(lesson.tilt)

    def single(array: Any) -> Any:
        return torch.tensor(array, dtype=torch.float32)

    def start(*shape: int, scale: float = START) -> Any:
        return (scale * torch.randn(*shape, generator=generator)).requires_grad_()

    bias = single(lesson.bias)
    parameters = {
        "projection": start(networks, 2, dimensions, width),
        "of_model": start(networks, 2, width, models),
        "of_words": start(networks, 2, width, described, scale=0.0),
        "length": start(networks, width, buckets),
        "bias": bias.clone().requires_grad_(),
        "length_bias": single(np.tile(lesson.length_bias, (networks, 1))).requires_grad_(),
    }
    x, words, tilt = single(lesson.x), single(lesson.words), single(lesson.tilt)
    quality, seen = single(np.nan_to_num(lesson.quality)), single(np.isfinite(lesson.quality))
    bucket = torch.tensor(lesson.bucket)
    certainty = 1 / _dispersion(lesson.quality)
    own = [torch.tensor(np.flatnonzero(lesson.fold != network)) for network in range(networks)]
    penalties, share = torch.tensor(PENALTIES) * len(lesson.x) ** 0.5, 1 / len(lesson.x)

    def learnt() -> dict[str, Any]:
        embedding = parameters["of_model"] + parameters["of_words"] @ words.T
        return {**parameters, "embedding": embedding, "tilt": tilt}

    def loss() -> Any:
        rows = torch.stack([mine[torch.randint(len(mine), (BATCH,), generator=generator)] for mine in own])
        right, long = heads(x[rows][:, None], learnt())
        capable = binary_cross_entropy_with_logits(right, quality[rows], weight=certainty * seen[rows], reduction="sum")
        lengthy = cross_entropy(long.reshape(-1, buckets), bucket[rows].flatten(), ignore_index=-1, reduction="sum")
        squares = sum((parameters[name] ** 2).sum(dim=(0, 2, 3)) for name in ("projection", "of_model", "of_words"))
        penalty = (penalties * squares).sum() + LENGTH_PENALTY * (parameters["length"] ** 2).sum()
        penalty = penalty + BIAS_PENALTY * ((parameters["bias"] - bias) ** 2).sum()
        return (capable + lengthy) / BATCH + share * penalty

    optimizer = torch.optim.Adam(parameters.values(), lr=LEARNING_RATE)
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            with torch.no_grad():
                kept = {name: value.double().numpy().copy() for name, value in learnt().items()}
            del kept["of_model"], kept["of_words"]
            yield step, kept
        if step < steps and all(len(mine) for mine in own):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()


def _dispersion(quality: FloatArray) -> float:
    """Variance of quality around the models' means as a share of what right/wrong labels of those means would have."""
    observed = np.isfinite(quality)
    count = np.maximum(observed.sum(axis=0), 1)
    mean = np.where(observed, quality, 0.0).sum(axis=0) / count
    most = np.where(observed, mean * (1 - mean), 0.0).sum()
    return max(float(np.nansum((quality - mean) ** 2) / most), LEAST_DISPERSION) if most > 0 else 1.0
