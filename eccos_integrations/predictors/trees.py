"""Extremely randomised trees over what queries look like, grown with scikit-learn, walked with numpy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.encoders import EncoderLike
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors.base import Estimate, Predictor
from eccos_integrations.predictors.history import QUALITY, Arrays, History

FEATURES_TRIED = 0.3  # share of the dimensions tried at each split
STRENGTH = 10.0  # outcomes in a leaf that a model's mean is worth
CHUNK = 128  # queries estimated at once: bounds the (chunk, trees, 2 M) array


class TreesPredictor(Predictor):
    """Mean over trees of what the models did on the past queries that fell into the same leaf, drawn to their means.

    The trees are grown to tell qualities apart, those of all models at once; a leaf keeps sums and counts, so new
    outcomes and new models are added without growing anything anew.

    Source: Geurts, Ernst and Wehenkel, "Extremely randomized trees", Machine Learning 63, 2006.

    Args:
        encoder: See `eccos_integrations.encoders.make_encoder`.
        trees: Number of trees.
        leaf: Fewest past queries in a leaf.
    """

    name = "trees"
    per_model = {"leaf_total": 0.0, "leaf_count": 0.0}  # noqa: RUF012

    def __init__(self, encoder: EncoderLike = "lexical", trees: int = 50, leaf: int = 30) -> None:
        super().__init__(encoder)
        if trees < 1 or leaf < 1:
            raise ConfigError(f"trees: trees={trees}, leaf={leaf}; give at least 1 of each")
        self.trees = trees
        self.leaf = leaf

    def settings(self) -> dict[str, Any]:
        """Number of trees and least size of a leaf."""
        return {"trees": self.trees, "leaf": self.leaf}

    def learn(self, history: History, pool: ModelPool, arrays: Arrays, seed: int) -> Arrays:
        """Trees that tell qualities apart, and the outcomes in each leaf."""
        from sklearn.ensemble import ExtraTreesRegressor

        quality = history.values[:, QUALITY]
        mean = arrays["total"][QUALITY] / np.maximum(arrays["count"][QUALITY], 1)
        forest = ExtraTreesRegressor(
            self.trees, min_samples_leaf=self.leaf, max_features=FEATURES_TRIED, random_state=seed, n_jobs=1
        )
        forest.fit(history.x, np.where(np.isfinite(quality), quality, mean))
        learnt = _flattened([tree.tree_ for tree in forest.estimators_])
        leaves = _leaves(history.x, learnt)
        shape = (len(learnt["threshold"]), *history.values.shape[1:])
        return learnt | _added(np.zeros(shape), np.zeros(shape), leaves, history.values)

    def estimate(self, x: FloatArray, arrays: Arrays) -> Estimate:
        """The outcomes in the leaves x falls into."""
        leaves = _leaves(x, arrays)
        total = np.empty((len(x), *arrays["leaf_total"].shape[1:]))
        weight = np.empty_like(total)
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            trust = 1 / (arrays["leaf_count"][leaves[part]] + STRENGTH)
            total[part] = (arrays["leaf_total"][leaves[part]] * trust).mean(axis=1)
            weight[part] = 1 - STRENGTH * trust.mean(axis=1)
        return Estimate(total, weight)

    def held_out(self, history: History, arrays: Arrays) -> Estimate:
        """The leaves' outcomes less the query's own."""
        leaves = _leaves(history.x, arrays)
        observed = np.isfinite(history.values)
        values = np.where(observed, history.values, 0.0)
        total, weight = np.zeros(values.shape), np.zeros(values.shape)
        for own in leaves.T:
            count = arrays["leaf_count"][own] - observed
            total += (arrays["leaf_total"][own] - values) / (count + STRENGTH)
            weight += count / (count + STRENGTH)
        return Estimate(total / leaves.shape[1], weight / leaves.shape[1])

    def learn_more(self, x: FloatArray, values: FloatArray, arrays: Arrays) -> Arrays:
        """More outcomes in the leaves; the trees stay."""
        return _added(arrays["leaf_total"].copy(), arrays["leaf_count"].copy(), _leaves(x, arrays), values)


def _added(total: FloatArray, count: FloatArray, leaves: NDArray[np.int64], values: FloatArray) -> Arrays:
    """Sums and counts (nodes, 2, M) with the values (N, 2, M) of queries in these leaves (N, trees)."""
    observed = np.isfinite(values)
    known = np.where(observed, values, 0.0)
    for own in leaves.T:
        np.add.at(total, own, known)
        np.add.at(count, own, observed)
    return {"leaf_total": total, "leaf_count": count}


def _flattened(trees: list[Any]) -> Arrays:
    """All trees as one list of nodes; a leaf leads to itself."""
    starts = np.cumsum([0, *(tree.node_count for tree in trees)])
    children = []
    for side in ("children_left", "children_right"):
        parts = [
            np.where(getattr(tree, side) < 0, np.arange(tree.node_count), getattr(tree, side)) + start
            for tree, start in zip(trees, starts, strict=False)
        ]
        children.append(np.concatenate(parts))
    return {
        "root": starts[:-1],
        "depth": np.array(max(tree.max_depth for tree in trees)),
        "child": np.column_stack(children).ravel(),  # left and right of each node, one after the other
        "feature": np.maximum(np.concatenate([tree.feature for tree in trees]), 0),
        "threshold": np.concatenate([tree.threshold for tree in trees]),
    }


def _leaves(x: FloatArray, arrays: Arrays) -> NDArray[np.int64]:
    """Leaf of each query in each tree, (N, trees)."""
    features = x.astype(np.float32).ravel()  # what scikit-learn compares
    start = (np.arange(len(x)) * x.shape[1])[:, None]
    node = np.broadcast_to(arrays["root"], (len(x), len(arrays["root"])))
    for _ in range(int(arrays["depth"])):
        goes_right = features.take(start + arrays["feature"].take(node)) > arrays["threshold"].take(node)
        node = arrays["child"].take(2 * node + goes_right)
    return node
