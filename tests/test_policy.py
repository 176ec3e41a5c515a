"""Policies: what they refuse, and what their floors come to."""

import pytest

from eccos_integrations import ConfigError, Policy, Router


def test_a_policy_that_says_nothing_asks_for_nothing():
    policy = Policy()
    assert (policy.min_quality, policy.max_mean_cost_usd, policy.capacity) == (None, None, None)
    assert policy.on_infeasible == "best_effort"
    assert policy.floors({None: 0.8}) is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"min_quality": 1.01}, r"Policy: min_quality: .*less than or equal to 1 \(given: 1.01\)"),
        ({"min_quality": -0.1}, r"min_quality: .*\(given: -0.1\)"),
        ({"min_quality": float("nan")}, "min_quality: "),
        ({"min_quality": "high"}, "min_quality: .*'high'"),
        ({"min_quality": {"math": 1.5}}, "min_quality: .*1.5"),
        ({"min_qualty": 0.9}, "min_qualty: unknown field; there are .*'min_quality'"),
        ({"self": 1}, "self: unknown field"),
        ({"relative_to": "best"}, "relative_to needs min_quality"),
        ({"min_quality": 0.9, "relative_to": "oracle"}, "relative_to: .*'best'.*'oracle'"),
        ({"max_mean_cost_usd": -1}, r"max_mean_cost_usd: .*\(given: -1\)"),
        ({"max_mean_cost_usd": float("inf")}, "max_mean_cost_usd: .*finite"),
        ({"capacity": {"m": -1}}, r"capacity: .*\(given: -1\)"),
        ({"capacity": {"m": 1.5}}, "capacity: .*integer"),
        ({"capacity": [1, 2]}, "capacity: .*dictionary"),
        ({"on_infeasible": "explode"}, "on_infeasible: .*'best_effort' or 'raise'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_field_is_one_config_error_that_names_it(fields, says):
    with pytest.raises(ConfigError, match=says):
        Policy(**fields)


@pytest.mark.parametrize("floor", [0, 1, 0.5, None])
def test_the_ends_of_the_range_are_floors_too(floor):
    assert Policy(min_quality=floor).min_quality == floor


def test_a_value_typed_under_an_unknown_name_is_never_shown():
    with pytest.raises(ConfigError, match="api_key") as error:
        Policy(api_key="sk-secret")
    assert "sk-secret" not in str(error.value)


def test_capacity_of_an_unknown_model_is_refused_and_named():
    Policy(capacity={"a": 0}).check_models(["a", "b"])
    with pytest.raises(ConfigError, match=r"capacity: \['zz'\] not in the pool, which has \['a', 'b'\]"):
        Policy(capacity={"a": 1, "zz": 1}).check_models(["a", "b"])


def test_a_router_refuses_capacity_of_an_unknown_model_when_fitted_and_when_planning(small_table, fitted_router):
    policy = Policy(capacity={"gpt-99": 5})
    with pytest.raises(ConfigError, match="'gpt-99'"):
        Router.fit(small_table, policy=policy, predictor="prior")
    with pytest.raises(ConfigError, match="'gpt-99'"):
        fitted_router.plan(["what?"], policy=policy)


def test_an_absolute_floor_is_itself():
    assert Policy(min_quality=0.8).floors({None: 0.5}) == 0.8


def test_a_relative_floor_is_a_share_of_the_best_model_on_the_batch():
    assert Policy(min_quality=0.5, relative_to="best").floors({None: 0.9}) == 0.45


def test_floors_by_group_are_each_taken_of_their_group():
    policy = Policy(min_quality={"math": 0.5, "code": 1.0, "absent": 0.1}, relative_to="best")
    assert policy.floors({None: 0.7, "math": 0.8, "code": 0.6}) == {"math": 0.4, "code": 0.6}


def test_a_group_without_a_floor_is_named():
    with pytest.raises(ConfigError, match=r"min_quality: no floor for the groups \['code'\]"):
        Policy(min_quality={"math": 0.5}).floors({None: 0.7, "math": 0.8, "code": 0.6})


def test_a_policy_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Policy(min_quality=0.9).min_quality = 0.1
