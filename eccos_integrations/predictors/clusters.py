"""Groups of like queries found from their text, and what the models did in each."""

from typing import Any

import numpy as np

from eccos_integrations.encoders import EncoderLike
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors.base import Estimate, Predictor
from eccos_integrations.predictors.history import Arrays, History

SIZES = (8, 16, 32)  # how finely to group: all at once, the mean over them
STRENGTH = 10.0  # outcomes in a cluster that a model's mean is worth
SOFTNESS = 0.25  # squared distance, as a share of the usual one to the nearest centre, at which membership fades


class ClustersPredictor(Predictor):
    """Mean of what the models did in the groups a query belongs to, drawn to their means.

    Groups are found by k-means at several sizes; a query belongs to each by how near it is.

    Args:
        encoder: See `eccos_integrations.encoders.make_encoder`.
        sizes: Numbers of clusters.
    """

    name = "clusters"
    per_model = {"cluster_total": 0.0, "cluster_count": 0.0}  # noqa: RUF012

    def __init__(self, encoder: EncoderLike = "lexical", sizes: tuple[int, ...] = SIZES) -> None:
        super().__init__(encoder)
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"clusters: sizes={sizes}; give at least one, each at least 1")
        self.sizes = tuple(sizes)

    def settings(self) -> dict[str, Any]:
        """Numbers of clusters."""
        return {"sizes": list(self.sizes)}

    def learn(self, history: History, pool: ModelPool, arrays: Arrays, seed: int) -> Arrays:
        """Centres at every size, and the outcomes around each."""
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        distinct = np.unique(history.x, axis=0)
        sizes = [min(size, len(distinct)) for size in self.sizes]
        with threadpool_limits(limits=1):  # small matrices: a second thread waits more than it works
            found = [KMeans(size, n_init=1, random_state=seed).fit(history.x) for size in sizes]
        usual = [float(np.median(_squared_distances(history.x, means.cluster_centers_).min(axis=1))) for means in found]
        learnt: Arrays = {
            "centre": np.concatenate([means.cluster_centers_ for means in found]),
            "size": np.array(sizes),
            "softness": np.maximum(SOFTNESS * np.array(usual), 1e-9),
        }
        shape = (len(learnt["centre"]), *history.values.shape[1:])
        return learnt | _added(np.zeros(shape), np.zeros(shape), _membership(history.x, learnt), history.values)

    def estimate(self, x: FloatArray, arrays: Arrays) -> Estimate:
        """The outcomes of the clusters x is near to."""
        membership = _membership(x, arrays) / len(arrays["size"])
        trust = 1 / (arrays["cluster_count"] + STRENGTH)
        total = np.einsum("nk,kvm->nvm", membership, arrays["cluster_total"] * trust)
        return Estimate(total, np.einsum("nk,kvm->nvm", membership, arrays["cluster_count"] * trust))

    def held_out(self, history: History, arrays: Arrays) -> Estimate:
        """The clusters' outcomes less the query's own."""
        membership = _membership(history.x, arrays)
        observed = np.isfinite(history.values)
        values = np.where(observed, history.values, 0.0)
        total, weight = np.zeros(values.shape), np.zeros(values.shape)
        for share, sums, counts in zip(membership.T, arrays["cluster_total"], arrays["cluster_count"], strict=True):
            own = share[:, None, None]
            count = np.maximum(counts - own * observed, 0.0)
            total += own * (sums - own * values) / (count + STRENGTH)
            weight += own * count / (count + STRENGTH)
        return Estimate(total / len(arrays["size"]), weight / len(arrays["size"]))

    def learn_more(self, x: FloatArray, values: FloatArray, arrays: Arrays) -> Arrays:
        """More outcomes in the clusters; the centres stay."""
        return _added(arrays["cluster_total"], arrays["cluster_count"], _membership(x, arrays), values)


def _added(total: FloatArray, count: FloatArray, membership: FloatArray, values: FloatArray) -> Arrays:
    """Sums and counts (clusters, 2, M) with the values (N, 2, M) of queries of these memberships (N, clusters)."""
    observed = np.isfinite(values)
    return {
        "cluster_total": total + np.einsum("nk,nvm->kvm", membership, np.where(observed, values, 0.0), optimize=True),
        "cluster_count": count + np.einsum("nk,nvm->kvm", membership, observed.astype(np.float64), optimize=True),
    }


def _membership(x: FloatArray, arrays: Arrays) -> FloatArray:
    """How far each query belongs to each cluster, (N, clusters): 1 in all at each size."""
    distance = _squared_distances(x, arrays["centre"])
    end = np.cumsum(arrays["size"])
    for start, stop, softness in zip(end - arrays["size"], end, arrays["softness"], strict=True):
        part = distance[:, start:stop]
        part -= part.min(axis=1, keepdims=True)
        np.exp(part / -softness, out=part)
        part /= part.sum(axis=1, keepdims=True)
    return distance


def _squared_distances(x: FloatArray, centres: FloatArray) -> FloatArray:
    """(N, K)."""
    squares: FloatArray = (x**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * x @ centres.T
    return squares
