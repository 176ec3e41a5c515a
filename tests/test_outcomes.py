"""The outcome table: what it refuses, how it is cut, and that a text never stands on both sides of a cut."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError, DataError, OutcomeTable, Router
from eccos_integrations.outcomes import MEASURES

nan = float("nan")


def table(**changed) -> OutcomeTable:
    fields = {
        "query_ids": ["a", "b"],
        "queries": ["secretive okapi", "secretive quokka"],
        "models": ["small", "large"],
        "quality": [[1, 0], [0, 1]],
    }
    return OutcomeTable(**{**fields, **changed})


def of_texts(queries: list[str], tasks: list[str] | None = None) -> OutcomeTable:
    ids = [f"id-{i}" for i in range(len(queries))]
    return OutcomeTable(ids, queries, ["m"], np.ones((len(queries), 1)), tasks=tasks)


def distinct(texts: list[str]) -> set[str]:
    return {" ".join(text.split()) for text in texts}


# --- what a table is ---


def test_measures_not_given_are_unobserved():
    assert np.isnan(table().cost_usd).all()
    assert table().latency_s.shape == (2, 2)
    assert table().tasks is None


def test_right_and_wrong_become_one_and_zero():
    assert table(quality=np.array([[True, False], [False, True]])).quality.tolist() == [[1, 0], [0, 1]]


def test_none_in_an_array_is_unobserved():
    assert np.isnan(table(quality=[[None, 1], [0, 1]]).quality[0, 0])


def test_a_table_keeps_its_own_copy_of_what_it_was_given():
    quality, ids = np.ones((2, 2)), ["a", "b"]
    made = table(quality=quality, query_ids=ids)
    quality[0, 0] = 0
    ids[0] = "z"
    assert made.quality[0, 0] == 1
    assert made.query_ids == ["a", "b"]


@pytest.mark.parametrize("name", MEASURES)
def test_arrays_cannot_be_written_to(name):
    with pytest.raises(ValueError, match="read-only"):
        getattr(table(), name)[0, 0] = 0.5


def test_repr_counts_and_shows_no_prompt():
    shown = repr(table(quality=[[1, nan], [0, nan]]))
    assert shown == "OutcomeTable(2 queries x 2 models, 50% observed)"


def test_the_sample_is_a_thousand_distinct_queries_of_two_tasks(sample):
    assert (len(sample), len(sample.models)) == (1000, 10)
    assert len(distinct(sample.queries)) == 1000
    assert len(set(sample.tasks)) == 2
    for name in ("quality", "cost_usd", "input_tokens", "output_tokens"):
        assert np.isfinite(getattr(sample, name)).all(), name


# --- what a table refuses ---


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"query_ids": ["a", "a"]}, "query_ids: 'a' stands twice"),
        ({"models": ["m", "m"]}, "models: 'm' stands twice"),
        ({"query_ids": ["a"]}, "queries: 2 texts for 1 query_ids"),
        ({"query_ids": [], "queries": [], "quality": np.ones((0, 2))}, "empty"),
        ({"models": [], "quality": np.ones((2, 0))}, "empty"),
        ({"query_ids": [1, 2]}, "query_ids: item 0 is a int"),
        ({"query_ids": "ab"}, "query_ids: got one string"),
        ({"query_ids": None}, "query_ids"),
        ({"queries": [b"x", "y"]}, "queries: item 0 is a bytes"),
        ({"models": [None, "m"]}, "models: item 0 is a NoneType"),
        ({"tasks": ["x"]}, "tasks: 1 labels for 2 queries"),
        ({"tasks": [1, 2]}, "tasks: item 0 is a int"),
        ({"quality": np.ones((2, 3))}, r"quality: shape \(2, 3\), expected .* \(2, 2\)"),
        ({"quality": [1, 1]}, "quality: shape"),
        ({"quality": [[1.01, 0], [0, 1]]}, "quality: 1.01 for query_id 'a', model 'small'.* between 0 and 1"),
        ({"quality": [[1, 0], [-0.5, 1]]}, "quality: -0.5 for query_id 'b', model 'small'"),
        ({"quality": [[nan, nan], [nan, nan]]}, "quality: no outcome was observed"),
        ({"quality": [["good", 0], [0, 1]]}, "quality"),
        ({"quality": [[1], [0, 1]]}, "quality"),
        ({"cost_usd": [[0, -1e-9], [0, 0]]}, "cost_usd: .* model 'large'; it must be finite and not negative"),
        ({"cost_usd": [[0, np.inf], [0, 0]]}, "cost_usd: inf for"),
        ({"cost_usd": [[10**400, 0], [0, 0]]}, "cost_usd"),
        ({"input_tokens": [[-1, 0], [0, 0]]}, "input_tokens: -1 for"),
        ({"output_tokens": [[0, 0], [-np.inf, 0]]}, "output_tokens: -inf for"),
        ({"latency_s": [[0, 0], [0, -2]]}, "latency_s: -2 for"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_rule_is_one_data_error_that_names_the_field(changed, says):
    with pytest.raises(DataError, match=says) as error:
        table(**changed)
    assert "secretive" not in str(error.value)


def test_a_router_is_not_fitted_on_one_query(small_table):
    with pytest.raises(ConfigError, match=r"table: .* at least two"):
        Router.fit(small_table.take([0]))


def test_a_router_is_not_fitted_on_one_text_asked_many_times(small_table):
    same = OutcomeTable(small_table.query_ids, ["what?"] * len(small_table), small_table.models,
                        small_table.quality, small_table.cost_usd)  # fmt: skip
    with pytest.raises(ConfigError, match=r"table: .* at least two"):
        Router.fit(same)


def test_a_router_is_not_fitted_on_one_model(small_table):
    with pytest.raises(ConfigError, match=r"'tiny'.* at least two"):
        Router.fit(small_table.select(["tiny"]))


# --- take and select ---


def test_take_gives_the_rows_asked_for_in_that_order(small_table):
    rows = [7, 0, 59]
    part = small_table.take(rows)
    assert part.query_ids == ["id-7", "id-0", "id-59"]
    assert part.queries == [small_table.queries[row] for row in rows]
    assert part.tasks == [small_table.tasks[row] for row in rows]
    for name in MEASURES:
        np.testing.assert_array_equal(getattr(part, name), getattr(small_table, name)[rows])


def test_take_refuses_rows_that_are_not_there(small_table):
    with pytest.raises(DataError, match="60"):
        small_table.take([60])


def test_take_reads_a_mask_as_a_mask(small_table):
    mask = np.zeros(60, dtype=bool)
    mask[[3, 5]] = True
    assert small_table.take(mask).query_ids == ["id-3", "id-5"]


def test_take_refuses_no_rows_and_the_same_row_twice(small_table):
    with pytest.raises(DataError, match="empty"):
        small_table.take([])
    with pytest.raises(DataError, match="'id-1' stands twice"):
        small_table.take([1, 1])


def test_select_gives_the_models_asked_for_in_that_order(small_table):
    part = small_table.select(models=["large", "tiny"])
    assert part.models == ["large", "tiny"]
    assert part.query_ids == small_table.query_ids
    assert part.tasks == small_table.tasks
    for name in MEASURES:
        np.testing.assert_array_equal(getattr(part, name), getattr(small_table, name)[:, [3, 0]])


@pytest.mark.parametrize("models", [["huge"], ["tiny", "huge"], [], ["tiny", "tiny"]], ids=str)
def test_select_refuses_unknown_repeated_and_no_models(small_table, models):
    with pytest.raises(DataError, match="model"):
        small_table.select(models)


# --- split and folds ---

# Few words and much white space: texts repeat often, exactly and but for their spacing.
repeating = st.builds(" ".join, st.lists(st.sampled_from(["x", "y", "z", "", "\n"]), min_size=1, max_size=4))
fractions = st.floats(0.05, 0.95)
seeds = st.integers(0, 2**32)


@st.composite
def with_tasks(draw) -> OutcomeTable:
    """Distinct texts, each with a task."""
    n = draw(st.integers(4, 60))
    tasks = draw(st.lists(st.sampled_from(["p", "q", "r"]), min_size=n, max_size=n))
    return of_texts([f"text {i}" for i in range(n)], tasks)


@settings(deadline=None, max_examples=100)
@given(st.lists(repeating, min_size=2, max_size=40), fractions, seeds)
def test_the_same_text_never_stands_on_both_sides_of_a_split(texts, fraction, seed):
    whole = of_texts(texts)
    try:
        first, second = whole.split(fraction, seed)
    except DataError:
        reject()
    assert distinct(first.queries).isdisjoint(distinct(second.queries))
    assert Counter(first.query_ids + second.query_ids) == Counter(whole.query_ids)


@settings(deadline=None, max_examples=50)
@given(with_tasks(), st.floats(0.3, 0.7), seeds)
def test_a_split_gives_every_task_its_share(whole, fraction, seed):
    first, _ = whole.split(fraction, seed)
    for task, n in Counter(whole.tasks).items():
        assert abs(first.tasks.count(task) - fraction * n) <= 1


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("times", [2, 3])
def test_a_split_keeps_its_fraction_where_every_text_repeats(fraction, times):
    whole = of_texts([f"text {i // times}" for i in range(40 * times)])
    first, _ = whole.split(fraction)
    assert abs(len(first) / len(whole) - fraction) < 0.05


def test_a_split_is_the_same_for_the_same_seed_and_another_for_another(small_table):
    once, again, other = (small_table.split(0.5, seed)[0].query_ids for seed in (3, 3, 4))
    assert once == again
    assert once != other


def test_both_parts_of_a_split_keep_the_order_and_the_measures(small_table):
    for part in small_table.split(0.7, seed=1):
        rows = [small_table.query_ids.index(query_id) for query_id in part.query_ids]
        assert rows == sorted(rows)
        assert part.models == small_table.models
        for name in MEASURES:
            np.testing.assert_array_equal(getattr(part, name), getattr(small_table, name)[rows])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, nan, True])
def test_a_split_refuses_a_fraction_that_leaves_a_side_empty(small_table, fraction):
    with pytest.raises(DataError, match=f"fraction: {fraction}"):
        small_table.split(fraction)


def test_a_split_that_one_side_of_would_be_empty_asks_for_more_queries():
    with pytest.raises(DataError, match="give more queries"):
        of_texts(["same", "same "]).split(0.5)


@settings(deadline=None, max_examples=100)
@given(st.lists(repeating, min_size=1, max_size=40), st.integers(1, 7), seeds)
def test_folds_share_no_text_and_hold_every_row_once(texts, k, seed):
    whole = of_texts(texts)
    folds = whole.folds(k, seed)
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(whole)))
    in_fold = [distinct([texts[row] for row in fold]) for fold in folds]
    assert sum(map(len, in_fold)) == len(set.union(*in_fold))
    assert max(map(len, in_fold)) - min(map(len, in_fold)) <= 1
    assert len(folds) == min(k, len(distinct(texts)))


@settings(deadline=None, max_examples=50)
@given(with_tasks(), st.integers(2, 5), seeds)
def test_folds_give_every_task_its_share(whole, k, seed):
    folds = whole.folds(k, seed)
    for task in set(whole.tasks):
        counts = [sum(whole.tasks[row] == task for row in fold) for fold in folds]
        assert max(counts) - min(counts) <= 1


def test_folds_are_the_same_for_the_same_seed_and_others_for_another(small_table):
    once, again, other = ([fold.tolist() for fold in small_table.folds(5, seed)] for seed in (3, 3, 4))
    assert once == again
    assert once != other
