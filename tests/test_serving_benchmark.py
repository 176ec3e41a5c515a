"""The serving benchmark, small: its figures are what they say."""

import math

import pytest

from benchmarks import serving
from benchmarks.serving_parts import load
from eccos_integrations import Model, ModelPool
from eccos_integrations.replay import Faults
from eccos_integrations.replay.log import Entry
from tests.redis_server import RedisServer, needs_redis


@pytest.fixture(scope="module")
def world():
    return load.World.make(limited=True, predictor="prior")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(load, "REQUESTS", 300)
    monkeypatch.setattr(load, "CALLERS", 100)


BUSY = {"given": True, "speed": 200.0, "faults": Faults(error_rate=0.1, hang_rate=0.01, hang_s=0.05, seed=1)}


def check(figures):
    assert figures["requests"] == 300
    assert figures["answered"] + figures["failed"] + figures["cancelled"] == 300
    assert figures["cancelled"] > 0
    assert figures["faulty_calls"] > 10
    assert (figures["violations"], figures["lost"], figures["answered_twice"]) == (0, 0, 0)
    assert 0 < figures["p50_added_ms"] <= figures["p99_added_ms"]
    assert 0 < figures["usd_per_1000"] < 5
    assert 0.5 < figures["quality"] <= 1


def test_one_process_breaks_no_limit_and_loses_nothing(world, small):
    check(load.in_one(world, "memory", **BUSY).figures(world.router.pool))


@needs_redis
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_neither_do_four_on_redis(world, small, tmp_path):
    server = RedisServer(tmp_path)
    try:
        check(load.in_many(world, "redis", server.uri, **BUSY).figures(world.router.pool))
    finally:
        server.kill()


def test_the_yardstick_is_the_joint_plan(world):
    figures = serving.joint(world)
    assert figures["forecast_usd_per_1000"] == pytest.approx(
        1e3 * world.router.plan(world.unseen.queries).mean_cost_usd, abs=1e-4
    )
    assert figures["quality"] > 0.7


def test_logs_of_two_processes_are_counted_as_one():
    pool = [Model(name="m", max_concurrency=2, requests_per_minute=3)]

    def entry(began, ended):
        return Entry("m", began, 1, 1, status=200, ended=ended, followers=math.inf)

    one, other = [entry(0.0, 10.0), entry(20.0, 30.0)], [entry(1.0, 9.0), entry(5.0, 6.0)]
    figures = load.Run("two", 4, 1.0, 4, waited_s=[0.0], entries=one + other).figures(ModelPool(pool))
    assert figures["violations"] == 2  # the third at a time, the fourth in a minute


def test_placing_is_timed():
    figures = serving.repair(20, 4)
    assert 0 < figures["place_p50_ms"] <= figures["place_max_ms"]
