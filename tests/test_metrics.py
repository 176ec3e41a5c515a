"""What a dispatcher tells of its work arrives in OpenTelemetry and in Prometheus' text, and stands in nobody's way."""

import copy
import logging
import math
import os
import pickle
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from eccos_integrations import ConfigError
from eccos_integrations.errors import MissingExtraError
from eccos_integrations.serving.metrics import (
    MEASURES,
    Metrics,
    OpenTelemetryMetrics,
    PrometheusMetrics,
    default_metrics,
)

BY_NAME = {measure.name: measure for measure in MEASURES}


class OpenTelemetry:
    """Metrics of their own provider, and what it would export."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.meter = MeterProvider([self.reader]).get_meter("eccos")
        self.metrics = OpenTelemetryMetrics(self.meter)

    def exported(self):
        data = self.reader.get_metrics_data()
        scopes = [] if data is None else data.resource_metrics[0].scope_metrics
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def read(self, name, **labels):
        """The amount, of a distribution its sum and its count."""
        wanted = {f"eccos.{label}": value for label, value in labels.items()}
        metric = self.exported().get(f"eccos.{name}")
        points = [] if metric is None else metric.data.data_points
        found = [point for point in points if dict(point.attributes) == wanted]
        if BY_NAME[name].kind == "distribution":
            return (found[0].sum, found[0].count) if found else (0, 0)
        return found[0].value if found else 0

    def buckets(self, name):
        point = self.exported()[f"eccos.{name}"].data.data_points[0]
        return [*point.explicit_bounds, math.inf], list(point.bucket_counts)


class Prometheus:
    """Metrics of their own registry, and what is read from its text."""

    def __init__(self):
        self.metrics = PrometheusMetrics()

    def samples(self):
        families = text_string_to_metric_families(self.metrics.text())
        return {(sample.name, *sorted(sample.labels.items())): sample.value for f in families for sample in f.samples}

    def read(self, name, **labels):
        measure, samples = BY_NAME[name], self.samples()

        def of(suffix):
            return samples.get((measure.prometheus_name + suffix, *sorted(labels.items())), 0)

        if measure.kind == "distribution":
            return of("_sum"), of("_count")
        return of("_total" if measure.kind == "sum" else "")

    def buckets(self, name):
        own = f"{BY_NAME[name].prometheus_name}_bucket"
        up_to = {float(dict(key[1:])["le"]): count for key, count in self.samples().items() if key[0] == own}
        bounds = sorted(up_to)
        return bounds, [up_to[b] - (up_to[bounds[k - 1]] if k else 0) for k, b in enumerate(bounds)]


BACKENDS = [OpenTelemetry, Prometheus]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param()


def tell_all(metrics):
    metrics.queue(3)
    metrics.solved(0.004, 3)
    metrics.decided("small")
    metrics.decided("small")
    metrics.decided("large")
    metrics.waited(0.012)
    metrics.attempted("small", "ok", 1.5)
    metrics.attempted("small", "throttled", 0.25)
    metrics.cooled("small", 20.0)
    metrics.used("small", 0.002, 0.003, 300, 320)
    metrics.refused("backpressure")
    metrics.queue(1)


def test_everything_told_can_be_read(backend):
    tell_all(backend.metrics)
    read = backend.read
    assert (read("decisions", model="small"), read("decisions", model="large")) == (2, 1)
    assert read("attempts", model="small", outcome="ok") == read("attempts", model="small", outcome="throttled") == 1
    assert read("attempt.duration", model="small", outcome="ok") == (1.5, 1)
    assert read("wait.duration") == (0.012, 1)
    assert (read("solve.duration"), read("solve.queries")) == ((0.004, 1), (3, 1))
    assert (read("cooldowns", model="small"), read("cooldown.time", model="small")) == (1, 20)
    assert (read("cost.forecast", model="small"), read("cost.real", model="small")) == (0.002, 0.003)
    assert (read("tokens.forecast", model="small"), read("tokens.real", model="small")) == (300, 320)
    assert read("refusals", reason="backpressure") == 1
    assert read("queue.depth") == 1


def test_all_measures_are_told_and_each_has_its_unit_and_words_in_opentelemetry():
    backend = OpenTelemetry()
    tell_all(backend.metrics)
    exported = backend.exported()
    assert set(exported) == {f"eccos.{measure.name}" for measure in MEASURES}
    for measure in MEASURES:
        metric = exported[f"eccos.{measure.name}"]
        assert (metric.unit, metric.description) == (measure.unit, measure.description)
        assert re.fullmatch(r"eccos\.[a-z]+(\.[a-z]+)*", metric.name)
        assert re.fullmatch(r"s|USD|\{[a-z]+\}", metric.unit)


def test_all_measures_are_told_and_named_by_what_prometheus_asks_for():
    backend = Prometheus()
    tell_all(backend.metrics)
    families = {family.name: family for family in text_string_to_metric_families(backend.metrics.text())}
    for measure in MEASURES:
        family = families[measure.prometheus_name]
        assert family.documentation == measure.description
        assert family.type == {"sum": "counter", "distribution": "histogram", "level": "gauge"}[measure.kind]
        assert (measure.unit == "s") == family.name.endswith("_seconds")
    assert "eccos_decisions_total" in backend.metrics.text()


AMOUNTS = st.one_of(st.none(), st.sampled_from([math.nan, math.inf, -1.0, 0.0]), st.floats(0, 1e6))


@pytest.mark.parametrize("kind", BACKENDS)
@settings(deadline=None, max_examples=25)
@given(calls=st.lists(st.tuples(st.sampled_from("ab"), AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS), max_size=20))
@example(calls=[("a", 1.0, None, 2.0, 3.0), ("a", math.nan, 4.0, None, 5.0)])
def test_forecast_and_real_are_counted_on_the_same_calls_only(kind, calls):
    backend = kind()
    for call in calls:
        backend.metrics.used(*call)
    for what, at in (("cost", 1), ("tokens", 3)):
        for model in "ab":
            pairs = [call[at : at + 2] for call in calls if call[0] == model]
            known = [pair for pair in pairs if all(x is not None and 0 <= x < math.inf for x in pair)]
            assert backend.read(f"{what}.forecast", model=model) == pytest.approx(
                sum(forecast for forecast, _ in known)
            )
            assert backend.read(f"{what}.real", model=model) == pytest.approx(sum(real for _, real in known))


@pytest.mark.parametrize("kind", BACKENDS)
@settings(deadline=None, max_examples=25)
@given(waits=st.lists(st.floats(0.001, 60), min_size=1, max_size=200))
def test_the_99th_percentile_of_waits_is_read_within_a_factor_of_two(kind, waits):
    backend = kind()
    for seconds in waits:
        backend.metrics.waited(seconds)
    rank = math.ceil(0.99 * len(waits))
    bounds, counts = backend.buckets("wait.duration")
    k = next(k for k in range(len(counts)) if sum(counts[: k + 1]) >= rank)
    assert (bounds[k - 1] if k else 0) <= sorted(waits)[rank - 1] <= bounds[k]
    assert k == 0 or bounds[k] <= 2 * bounds[k - 1]


def test_waits_have_buckets_from_a_millisecond_to_a_minute(backend):
    backend.metrics.waited(0.5)
    bounds, _ = backend.buckets("wait.duration")
    assert (bounds[0], bounds[-2], bounds[-1]) == (0.001, 60, math.inf)


def test_no_count_is_lost_between_threads(backend):
    def work(k):
        for _ in range(500):
            backend.metrics.decided(f"m{k % 2}")
            backend.metrics.waited(0.25)
            backend.metrics.queue(k)
        backend.metrics.queue(0)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert backend.read("decisions", model="m0") == backend.read("decisions", model="m1") == 2000
    assert backend.read("wait.duration") == (1000, 4000)
    backend.metrics.queue(7)
    assert backend.read("queue.depth") == 7


def test_queues_that_share_a_meter_add_up():
    backend = OpenTelemetry()
    other = OpenTelemetryMetrics(backend.meter)
    backend.metrics.queue(5)
    other.queue(2)
    assert backend.read("queue.depth") == 7
    backend.metrics.queue(0)
    assert backend.read("queue.depth") == 2


def test_two_in_one_process_do_not_clash_in_prometheus():
    one, two = Prometheus(), Prometheus()
    one.metrics.decided("small")
    assert (one.read("decisions", model="small"), two.read("decisions", model="small")) == (1, 0)


def test_a_registry_of_the_program_shows_all_it_has_and_takes_these_names_once():
    registry = CollectorRegistry()
    Counter("mine", "Of the program.", registry=registry).inc()
    metrics = PrometheusMetrics(registry)
    metrics.decided("small")
    assert "mine_total 1.0" in metrics.text()
    assert 'eccos_decisions_total{model="small"} 1.0' in metrics.text()
    with pytest.raises(ConfigError, match="registry"):
        PrometheusMetrics(registry)
    assert 'eccos_decisions_total{model="small"} 1.0' in metrics.text()


@pytest.mark.parametrize("name", ['a"b', "a\nb 7", "a\\b", "{model}", "", "名", "x" * 5000])
def test_any_name_of_a_model_comes_through(backend, name):
    backend.metrics.decided(name)
    assert backend.read("decisions", model=name) == 1


def test_a_name_that_is_no_unicode_spoils_no_export(backend):
    backend.metrics.decided("a\ud800")
    assert backend.read("decisions", model="a?") == 1


def test_an_unknown_time_still_counts_the_event(backend):
    backend.metrics.attempted("small", "ok", math.nan)
    backend.metrics.cooled("small", math.inf)
    assert backend.read("attempts", model="small", outcome="ok") == 1
    assert backend.read("attempt.duration", model="small", outcome="ok") == (0, 0)
    assert (backend.read("cooldowns", model="small"), backend.read("cooldown.time", model="small")) == (1, 0)


@pytest.mark.parametrize("odd", ["many", object(), [], 10**400], ids=["text", "object", "list", "huge"])
def test_what_is_no_number_is_lost_with_one_warning_and_no_error(backend, odd, caplog):
    with caplog.at_level(logging.WARNING, "eccos"):
        backend.metrics.waited(odd)
        backend.metrics.queue(odd)
        backend.metrics.used("secret", odd, 1.0, odd, 1.0)
    assert len(caplog.records) == 1
    assert "wait.duration" in caplog.text
    assert "secret" not in caplog.text
    backend.metrics.waited(0.5)
    assert backend.read("wait.duration") == (0.5, 1)
    assert backend.read("queue.depth") == 0


def test_a_backend_that_fails_is_in_nobodys_way(caplog):
    class BrokenError(Exception):
        pass

    class Instrument:
        def add(self, amount, attributes=None):
            raise BrokenError

        record = add

    class Meter:
        def create_counter(self, *named, **advice):
            return Instrument()

        create_up_down_counter = create_histogram = create_counter

    with caplog.at_level(logging.WARNING, "eccos"):
        tell_all(OpenTelemetryMetrics(Meter()))
    assert [record.message for record in caplog.records] == ["metrics: queue.depth could not be recorded (BrokenError)"]


def test_the_plain_ones_keep_nothing_and_say_nothing(caplog):
    metrics = Metrics()
    tell_all(metrics)
    metrics.waited("odd")
    assert vars(metrics) == {}
    assert caplog.records == []


@pytest.mark.parametrize("duplicate", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy, copy.copy])
def test_a_copy_starts_empty_and_counts_for_itself(duplicate):
    one = Prometheus()
    tell_all(one.metrics)
    other = Prometheus()
    other.metrics = duplicate(one.metrics)
    assert other.read("decisions", model="small") == 0
    other.metrics.decided("small")
    assert (one.read("decisions", model="small"), other.read("decisions", model="small")) == (2, 1)


def test_the_others_come_back_from_a_pickle_too():
    for metrics in (Metrics(), OpenTelemetry().metrics):
        found = pickle.loads(pickle.dumps(metrics))
        assert type(found) is type(metrics)
        tell_all(found)


def in_a_child(check):
    """Whether a check holds in a forked child, which has ten seconds."""
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


def test_a_forked_child_waits_for_no_lock_of_its_parents_opentelemetry():
    backend = OpenTelemetry()
    tell_all(backend.metrics)

    def queue_of_four():
        backend.metrics.queue(4)
        return backend.read("queue.depth") == 4

    with backend.metrics._lock:
        assert in_a_child(queue_of_four)


def test_a_forked_child_starts_empty_in_prometheus_whatever_locks_its_parent_held():
    backend = Prometheus()
    tell_all(backend.metrics)

    def counts_anew():
        tell_all(backend.metrics)
        return backend.read("decisions", model="small") == 2 and backend.read("queue.depth") == 1

    with backend.metrics._instruments[0]._lock:
        assert in_a_child(counts_anew)
    assert backend.read("decisions", model="small") == 2


def test_a_missing_package_names_the_extra_and_the_default_does_without(monkeypatch):
    pickled = pickle.dumps(default_metrics())
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"opentelemetry-api .*\[metrics\]"):
        OpenTelemetryMetrics()
    with pytest.raises(MissingExtraError, match=r"prometheus_client .*\[metrics\]"):
        PrometheusMetrics()
    assert type(default_metrics()) is Metrics
    assert type(pickle.loads(pickled)) is Metrics


def test_nothing_is_imported_until_needed_and_the_sdk_never():
    code = """
import sys
from eccos_integrations.serving.metrics import OpenTelemetryMetrics, default_metrics
assert not {"opentelemetry", "prometheus_client"} & set(sys.modules)
sys.modules["opentelemetry.sdk"] = None
metrics = default_metrics()
metrics.decided("small")
metrics.waited(0.5)
metrics.queue(1)
assert type(metrics) is OpenTelemetryMetrics
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_opentelemetry_that_cannot_be_used_is_no_reason_not_to_dispatch(caplog, monkeypatch):
    def get_meter(name):
        raise TypeError(name)

    monkeypatch.setattr("opentelemetry.metrics.get_meter", get_meter)
    with caplog.at_level(logging.WARNING, "eccos"):
        assert type(default_metrics()) is Metrics
    assert "TypeError" in caplog.text


def test_a_meter_provider_that_is_set_later_gets_what_comes_then():
    code = """
from eccos_integrations.serving.metrics import default_metrics
metrics = default_metrics()
metrics.decided("lost")
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
set_meter_provider(MeterProvider([reader]))
metrics.decided("small")
scope = reader.get_metrics_data().resource_metrics[0].scope_metrics[0]
points = scope.metrics[0].data.data_points
print(scope.scope.name, [(point.attributes["eccos.model"], point.value) for point in points])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "eccos [('small', 1.0)]\n"
