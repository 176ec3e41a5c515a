"""Trees and clusters: groups of like queries, and sums of what the models did in each."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError, ModelPool
from eccos_integrations.predictors import ClustersPredictor, PriorPredictor, TreesPredictor
from eccos_integrations.predictors.clusters import STRENGTH as CLUSTER_STRENGTH
from eccos_integrations.predictors.clusters import _membership
from eccos_integrations.predictors.history import History
from eccos_integrations.predictors.trees import STRENGTH, _leaves
from tests.contracts.tables import make_table, numbered, points, priced


def random_history(seed=0, n=150, m=3, observed=0.7):
    rng = np.random.default_rng(seed)
    x = points(seed, n)[0]
    values = np.where(rng.random((n, 2, m)) < observed, rng.random((n, 2, m)) + x[:, :1, None], np.nan)
    seen = np.isfinite(values)
    arrays = {"total": np.where(seen, values, 0).sum(axis=0), "count": seen.sum(axis=0).astype(float)}
    return History(x, values, values[:, 0], values[:, 1], np.ones((n, m))), arrays


def learnt(kind, past, arrays):
    predictor = kind()
    return predictor, arrays | predictor.learn(past, priced("a", "b", "c"), arrays, 0)


def test_a_query_falls_into_the_leaves_that_scikit_learn_finds():
    from sklearn.ensemble import ExtraTreesRegressor

    past, arrays = random_history(observed=1.0)
    predictor = TreesPredictor(trees=7, leaf=5)
    arrays = arrays | predictor.learn(past, priced("a", "b", "c"), arrays, 3)
    forest = ExtraTreesRegressor(7, min_samples_leaf=5, max_features=0.3, random_state=3)
    forest.fit(past.x, past.values[:, 0])
    new = points(9, 40)[0]
    starts = np.cumsum([0, *(tree.tree_.node_count for tree in forest.estimators_)])[:-1]
    np.testing.assert_array_equal(_leaves(new, arrays), forest.apply(new) + starts)


def test_a_trees_estimate_is_the_mean_over_leaves_drawn_to_the_mean():
    past, arrays = random_history()
    predictor, arrays = learnt(TreesPredictor, past, arrays)
    new = points(9, 5)[0]
    estimate = predictor.estimate(new, arrays)
    past_leaves, new_leaves = _leaves(past.x, arrays), _leaves(new, arrays)
    for row in range(5):
        for v in (0, 1):
            for j in range(3):
                y = past.values[:, v, j]
                trees = [y[(past_leaves[:, t] == leaf) & np.isfinite(y)] for t, leaf in enumerate(new_leaves[row])]
                total = np.mean([values.sum() / (len(values) + STRENGTH) for values in trees])
                weight = np.mean([len(values) / (len(values) + STRENGTH) for values in trees])
                np.testing.assert_allclose(estimate.total[row, v, j], total)
                np.testing.assert_allclose(estimate.weight[row, v, j], weight)


def test_a_clusters_estimate_is_the_mean_over_memberships_drawn_to_the_mean():
    past, arrays = random_history()
    predictor, arrays = learnt(ClustersPredictor, past, arrays)
    new = points(9, 5)[0]
    estimate = predictor.estimate(new, arrays)
    belongs, asks = _membership(past.x, arrays), _membership(new, arrays)
    np.testing.assert_allclose(asks.sum(axis=1), len(predictor.sizes))
    for row in range(5):
        for j in range(3):
            y = past.values[:, 0, j]
            seen = np.isfinite(y)
            count = belongs[seen].sum(axis=0)
            share = asks[row] / len(predictor.sizes) / (count + CLUSTER_STRENGTH)
            np.testing.assert_allclose(estimate.total[row, 0, j], share @ (belongs[seen].T @ y[seen]))
            np.testing.assert_allclose(estimate.weight[row, 0, j], share @ count)


@pytest.mark.parametrize("kind", [TreesPredictor, ClustersPredictor])
def test_a_held_out_estimate_is_one_that_never_saw_the_outcome(kind):
    past, arrays = random_history(n=60)
    predictor, arrays = learnt(kind, past, arrays)
    held_out = predictor.held_out(past, arrays)
    for row in range(0, 60, 7):
        only = slice(row, row + 1)
        unseen = dict(arrays)
        taken = predictor.learn_more(past.x[only], past.values[only], arrays)
        for name, with_it_twice in taken.items():
            unseen[name] = arrays[name] - (with_it_twice - arrays[name])
        estimate = predictor.estimate(past.x[only], unseen)
        np.testing.assert_allclose(held_out.total[row], estimate.total[0], atol=1e-9)
        np.testing.assert_allclose(held_out.weight[row], estimate.weight[0], atol=1e-9)


@pytest.mark.parametrize("kind", [TreesPredictor, ClustersPredictor])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), n=st.integers(1, 30))
def test_more_outcomes_join_the_groups_there_are(kind, seed, n):
    past, arrays = random_history(n=40)
    predictor, arrays = learnt(kind, past, arrays)
    before = {name: array.copy() for name, array in arrays.items()}
    more, _ = random_history(seed, n=n)
    changed = predictor.learn_more(more.x, more.values, arrays)
    for name, array in before.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)  # who forecasts meanwhile sees no change
    groups = {"trees": predictor.settings().get("trees"), "clusters": len(predictor.settings().get("sizes", []))}
    added = np.isfinite(more.values).sum(axis=0)
    for name, array in changed.items():
        if name.endswith("_count"):
            np.testing.assert_allclose((array - before[name]).sum(axis=0), groups[kind.name] * added)


@pytest.mark.parametrize("kind", [TreesPredictor, ClustersPredictor])
def test_groups_tell_which_model_is_good_at_what(kind):
    rng = np.random.default_rng(0)
    sort = rng.integers(0, 2, 500)
    vectors = np.column_stack([sort, 1 - sort]) + rng.normal(size=(500, 2)) * 0.2
    whole = numbered(np.column_stack([sort, 1 - sort]).astype(float))
    table, rest = whole.take(range(400)), whole.take(range(400, 500))

    def error(kind):
        predictor = kind(lambda texts: vectors[[int(text) for text in texts]])
        forecast = predictor.fit(table, ModelPool.from_outcomes(table)).forecast(rest.queries)
        return np.mean((forecast.quality - rest.quality) ** 2)

    assert error(kind) < 0.4 * error(PriorPredictor)


@pytest.mark.parametrize("kind", [TreesPredictor, ClustersPredictor])
def test_another_seed_finds_other_groups_of_the_same_data(kind):
    table = make_table(120)
    pool = ModelPool.from_outcomes(table)
    one, other = (kind().fit(table, pool, seed=seed).forecast(table.queries).quality for seed in (0, 1))
    assert 0 < np.abs(one - other).max() < 0.5


def test_a_history_smaller_than_the_clusters_asked_for_is_enough():
    table = make_table(5)
    predictor = ClustersPredictor(sizes=(3, 100)).fit(table, ModelPool.from_outcomes(table))
    assert predictor.arrays()["size"].tolist() == [3, 5]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [(TreesPredictor, {"trees": 0}), (TreesPredictor, {"leaf": 0}), (ClustersPredictor, {"sizes": ()}),
     (ClustersPredictor, {"sizes": (8, 0)})],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(kind, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        kind(**wrong)
