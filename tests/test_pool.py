"""Models and pools: what they refuse, prices recovered from outcomes, money from tokens, TOML in and out."""

import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError, EccosError, Model, ModelPool, OutcomeTable, Router

nan = float("nan")
PRICED = {"input_usd_per_million_tokens": 1.0, "output_usd_per_million_tokens": 2.0}


def billed(input_usd: float, output_usd: float, calls: list[tuple[int, int]], **changed) -> OutcomeTable:
    """One model's calls, input and output tokens of each, at these prices per million tokens."""
    tokens = np.array(calls, dtype=float)
    ids = [f"id-{i}" for i in range(len(calls))]
    measured = {
        "quality": np.ones((len(calls), 1)),
        "cost_usd": tokens @ [[input_usd], [output_usd]] / 1e6,
        "input_tokens": tokens[:, :1],
        "output_tokens": tokens[:, 1:],
    }
    return OutcomeTable(ids, ids, ["m"], **{**measured, **changed})


# --- models ---


def test_all_but_the_name_of_a_model_is_unknown_unless_said():
    model = Model(name="m")
    assert model.description == ""
    assert {value for key, value in model.model_dump().items() if key not in {"name", "description"}} == {None}


@pytest.mark.parametrize(
    ("known", "expected"),
    [({}, False), (PRICED, True), ({"input_usd_per_million_tokens": 1.0}, False),
     ({"input_usd_per_million_tokens": 0.0, "output_usd_per_million_tokens": 0.0}, True)],
)  # fmt: skip
def test_a_model_has_prices_when_both_are_known_even_if_they_are_zero(known, expected):
    assert Model(name="m", **known).has_prices is expected


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "Model: name: Field required"),
        ({"name": ""}, "name: .*at least 1 character"),
        ({"name": 5}, r"name: .*string \(given: 5\)"),
        ({"name": "m", "price": 1}, "Model of 'm': price: unknown field; there are .*'input_usd_per_million_tokens'"),
        ({"name": "m", "self": 1}, "Model of 'm': self: unknown field"),
        ({"name": "m", "input_usd_per_million_tokens": -1}, r"input_usd_per_million_tokens: .*\(given: -1\)"),
        ({"name": "m", "input_usd_per_million_tokens": nan}, "input_usd_per_million_tokens: .*finite"),
        ({"name": "m", "output_usd_per_million_tokens": float("inf")}, "output_usd_per_million_tokens: .*finite"),
        ({"name": "m", "output_usd_per_million_tokens": "dear"}, "output_usd_per_million_tokens: .*number"),
        ({"name": "m", "max_concurrency": 0}, "max_concurrency: .*greater than 0"),
        ({"name": "m", "max_concurrency": 1.5}, "max_concurrency: .*integer"),
        ({"name": "m", "requests_per_minute": -3}, r"requests_per_minute: .*\(given: -3\)"),
        ({"name": "m", "tokens_per_minute": 0}, "tokens_per_minute: "),
        ({"name": "m", "base_latency_s": -0.1}, "base_latency_s: "),
        ({"name": "m", "output_tokens_per_s": 0}, "output_tokens_per_s: .*greater than 0"),
        ({"name": "m", "context_window": 0}, "context_window: "),
        ({"name": "m", "tools": "perhaps"}, "tools: .*boolean"),
        ({"name": "m", "description": None}, "description: .*string"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_field_of_a_model_is_one_config_error_that_names_it(fields, says):
    with pytest.raises(ConfigError, match=says):
        Model(**fields)


@pytest.mark.parametrize(
    "make", [lambda fields: Model(**fields), Model.model_validate], ids=["Model", "model_validate"]
)
def test_a_key_typed_into_a_model_is_refused_and_never_shown(make):
    with pytest.raises(ValueError, match="api_key: unknown field") as error:
        make({"name": "m", "api_key": "sk-secret"})
    assert "sk-secret" not in str(error.value)


def test_a_model_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Model(name="m").name = "n"


# --- pools ---


def test_a_pool_keeps_its_order_and_finds_models_by_name():
    pool = ModelPool([Model(name="b"), Model(name="a", **PRICED)])
    assert pool.names == ["b", "a"]
    assert [model.name for model in pool] == ["b", "a"]
    assert len(pool) == 2
    assert pool["a"].has_prices
    assert "a" in pool
    assert "c" not in pool
    with pytest.raises(ConfigError, match=r"model 'c' is not in the pool, which has \['b', 'a'\]"):
        pool["c"]


@pytest.mark.parametrize(
    ("models", "says"),
    [([], "empty"), ([Model(name="a"), Model(name="a")], "'a' stands twice"), (["a"], "str")],
    ids=["none", "a name twice", "a name for a model"],
)
def test_a_pool_of_nothing_of_repeats_or_of_no_models_is_refused(models, says):
    with pytest.raises(ConfigError, match=says):
        ModelPool(models)


# --- prices from outcomes ---


def test_known_prices_are_recovered_from_outcomes(small_table, prices):
    pool = ModelPool.from_outcomes(small_table)
    assert pool.names == small_table.models
    for model in pool:
        assert (model.input_usd_per_million_tokens, model.output_usd_per_million_tokens) == prices[model.name]


per_million = st.integers(0, 10_000).map(lambda cents: cents / 100)
tokens = st.integers(1, 100_000)


@settings(deadline=None, max_examples=100)
@given(per_million, per_million.filter(bool), st.lists(st.tuples(tokens, tokens), min_size=3, max_size=20))
def test_prices_are_recovered_whatever_they_are_or_stay_unknown(input_usd, output_usd, calls):
    table = billed(input_usd, output_usd, calls)
    (model,) = ModelPool.from_outcomes(table)
    if len({a / b for a, b in calls}) == 1:  # one price cannot be told from the other
        assert not model.has_prices
    else:
        recovered = ModelPool([model]).cost_usd(table.input_tokens, table.output_tokens)
        np.testing.assert_allclose(recovered, table.cost_usd, rtol=1e-3)


def test_prices_recovered_for_the_sample_explain_its_costs(sample):
    pool = ModelPool.from_outcomes(sample)
    assert all(model.has_prices for model in pool)
    np.testing.assert_allclose(pool.cost_usd(sample.input_tokens, sample.output_tokens), sample.cost_usd, rtol=0.01)


def test_costs_rounded_as_in_a_bill_still_give_their_prices():
    calls = np.random.default_rng(0).integers(500, 5000, (50, 2)).tolist()
    exact = billed(2.5, 10.0, calls)
    (model,) = ModelPool.from_outcomes(billed(2.5, 10.0, calls, cost_usd=exact.cost_usd.round(5)))
    assert model.input_usd_per_million_tokens == pytest.approx(2.5, rel=0.01)
    assert model.output_usd_per_million_tokens == pytest.approx(10.0, rel=0.01)


@pytest.mark.parametrize(
    "changed",
    [
        {"input_tokens": None},
        {"output_tokens": None},
        {"output_tokens": [[7], [nan], [nan]]},
        {"input_tokens": [[5], [5], [5]], "output_tokens": [[7], [7], [7]]},
        {"cost_usd": [[1.0], [2.0], [30.0]]},
    ],
    ids=["no input tokens", "no output tokens", "one call with tokens", "always the same call", "another bill"],
)
def test_prices_stay_unknown_where_tokens_do_not_explain_the_cost(changed):
    (model,) = ModelPool.from_outcomes(billed(1, 2, [(10, 7), (20, 50), (30, 9)], **changed))
    assert model == Model(name="m")


def test_a_model_without_any_cost_is_named(small_table):
    cost = small_table.cost_usd.copy()
    cost[:, 2] = nan
    free = OutcomeTable(small_table.query_ids, small_table.queries, small_table.models, small_table.quality, cost)
    with pytest.raises(ConfigError, match="cost_usd: no cost of model 'medium'"):
        ModelPool.from_outcomes(free)


@pytest.mark.parametrize(
    ("known", "says"),
    [({}, "no observed cost and no price"), (PRICED, "no observed cost and no output_tokens")],
    ids=["no price", "a price but no tokens"],
)
def test_a_model_with_neither_price_nor_cost_is_not_routed_to(small_table, known, says):
    table = OutcomeTable(small_table.query_ids, small_table.queries, small_table.models, small_table.quality)
    with pytest.raises(ConfigError, match=f"'tiny' has {says}"):
        Router.fit(table, pool=ModelPool([Model(name=name, **known) for name in table.models]))


# --- money from tokens ---


def test_cost_is_tokens_times_price_per_million():
    pool = ModelPool([Model(name="a", **PRICED), Model(name="b")])
    cost = pool.cost_usd([[1_000_000, 5], [0, 5]], [[500_000, 5], [10, 5]])
    np.testing.assert_array_equal(cost, [[2.0, nan], [2e-5, nan]])


@pytest.mark.parametrize("known", [{"input_usd_per_million_tokens": 1.0}, {"output_usd_per_million_tokens": 1.0}])
def test_one_price_without_the_other_gives_no_cost(known):
    assert np.isnan(ModelPool([Model(name="m", **known)]).cost_usd([[1]], [[1]])).all()


# --- TOML ---

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=15)
price = st.none() | st.just(0.0) | st.floats(0, 1e9)
limit = st.none() | st.integers(1, 2**63 - 1)
models = st.builds(
    Model,
    name=words.filter(bool),
    input_usd_per_million_tokens=price,
    output_usd_per_million_tokens=price,
    cached_input_usd_per_million_tokens=price,
    max_concurrency=limit,
    requests_per_minute=limit,
    tokens_per_minute=limit,
    base_latency_s=price,
    output_tokens_per_s=st.none() | st.floats(1e-9, 1e9),
    context_window=limit,
    max_output_tokens=limit,
    tools=st.none() | st.booleans(),
    vision=st.none() | st.booleans(),
    json_output=st.none() | st.booleans(),
    description=words,
)
pools = st.lists(models, min_size=1, max_size=4, unique_by=lambda model: model.name).map(ModelPool)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("pool") / "pool.toml"


@settings(deadline=None, max_examples=100)
@given(pools)
def test_a_pool_is_read_as_it_was_written(file, pool):
    pool.write(file)
    assert ModelPool.read(file) == pool


def test_what_is_unknown_is_left_out_of_the_file(file):
    ModelPool([Model(name="m", tools=False, input_usd_per_million_tokens=0)]).write(file)
    kept = {"name": "m", "tools": False, "input_usd_per_million_tokens": 0.0}
    assert tomllib.loads(file.read_text()) == {"models": [kept]}


ONE = '[[models]]\nname = "m"\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{json: 1}", r"pool\.toml: not valid TOML .*line 1"),
        (ONE + "api_key = sk-secret\n", "not valid TOML .*line 3"),
        (ONE + 'name = "n"\n', "not valid TOML"),
        (ONE.encode("utf-16"), "not valid TOML"),
        ("x = " + "[" * 100_000, r"pool\.toml"),
        (ONE + "max_concurrency = " + "9" * 5000, r"pool\.toml"),
        ("", r"expected \[\[models\]\] tables"),
        ('[models]\nname = "m"\n', r"expected \[\[models\]\] tables"),
        ("models = [1]\n", r"expected \[\[models\]\] tables"),
        ("budget = 5\n" + ONE, "found .*'budget'"),
        ("models = []\n", "the pool is empty"),
        (ONE + ONE, "the name 'm' stands twice"),
        ("[[models]]\ntools = true\n", "name: Field required"),
        (ONE + "price = 1\n", "price: unknown field"),
        (ONE + "self = 1\n", "self: unknown field"),
        (ONE + 'api_key = "sk-secret"\n', "api_key: unknown field"),
        (ONE + "input_usd_per_million_tokens = -1\n", "'m': input_usd_per_million_tokens: .*given: -1"),
        (ONE + "input_usd_per_million_tokens = inf\n", "input_usd_per_million_tokens: .*finite"),
        ("[[models]]\nname = 2020-01-01\n", "name: .*string"),
    ],
    ids=["JSON", "no quotes", "a key twice", "UTF-16", "brackets without end", "5,000 digits", "nothing", "one table",
         "a number", "another key", "no models", "a name twice", "no name", "an unknown field", "self", "a secret",
         "a negative price", "an infinite price", "a date"],
)  # fmt: skip
def test_a_bad_pool_file_is_one_config_error_and_shows_no_key(file, content, says):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=says) as error:
        ModelPool.read(file)
    assert "sk-secret" not in str(error.value)


def test_a_pool_file_that_is_missing_or_a_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot be read"):
        ModelPool.read(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        ModelPool.read(tmp_path)


def test_a_pool_written_where_it_cannot_be_is_an_error_that_names_the_place(tmp_path, contents):
    with pytest.raises(EccosError, match=r"missing/pool\.toml"):
        ModelPool([Model(name="m")]).write(tmp_path / "missing" / "pool.toml")
    assert contents(tmp_path) == {}
