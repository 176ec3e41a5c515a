"""What a dispatcher did, in numbers: for OpenTelemetry, as text for Prometheus, or for nobody."""

import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from eccos_integrations.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from prometheus_client import CollectorRegistry, Metric

logger = logging.getLogger("eccos")

Outcome = Literal["ok", "throttled", "failing", "too_long", "error", "cancelled"]
Reason = Literal["backpressure", "deadline", "no_capacity", "error"]
SUFFIXES = {"s": "_seconds", "USD": "_usd"}  # Prometheus has the unit in the name


def _steps(least: float, most: float) -> tuple[float, ...]:
    """Bounds of buckets, none more than twice the one before: a quantile read from them is off by no more than that."""
    steps = (float(f"{digit}e{power}") for power in range(-6, 7) for digit in (1, 2, 3, 4, 6))
    return tuple(step for step in steps if least <= step <= most)


@dataclass(frozen=True)
class Measure:
    """One thing that is counted.

    Args:
        name: After `eccos.`, in OpenTelemetry's manner.
        kind: A sum that only grows, a distribution, or what there is now.
        unit: In OpenTelemetry's manner.
        description: In a sentence.
        labels: What it is told apart by.
        buckets: Upper bounds, of a distribution.
    """

    name: str
    kind: Literal["sum", "distribution", "level"]
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus' manner, which adds `_total` to sums."""
        return f"eccos_{self.name.replace('.', '_')}{SUFFIXES.get(self.unit, '')}"


MEASURES = (
    Measure("decisions", "sum", "{decision}", "Models given to callers, once per attempt.", ("model",)),
    Measure("wait.duration", "distribution", "s", "From asking for a model until one was given.",
            buckets=_steps(0.001, 60)),
    Measure("refusals", "sum", "{query}", "Callers that got no model.", ("reason",)),
    Measure("queue.depth", "level", "{query}", "Callers without a model yet."),
    Measure("solve.duration", "distribution", "s", "Time to decide the callers of a window.", buckets=_steps(1e-4, 10)),
    Measure("solve.queries", "distribution", "{query}", "Callers decided together.", buckets=_steps(1, 1000)),
    Measure("attempts", "sum", "{attempt}", "Calls of models that ended.", ("model", "outcome")),
    Measure("attempt.duration", "distribution", "s", "From getting a model until the call ended.",
            ("model", "outcome"), _steps(0.1, 600)),
    Measure("cooldowns", "sum", "{cooldown}", "Times a model was left alone.", ("model",)),
    Measure("cooldown.time", "sum", "s", "For how long models were left alone.", ("model",)),
    Measure("cost.forecast", "sum", "USD", "Forecast cost of calls with a known real one.", ("model",)),
    Measure("cost.real", "sum", "USD", "Real cost of calls with a known forecast one.", ("model",)),
    Measure("tokens.forecast", "sum", "{token}", "Forecast output tokens of calls with known real ones.", ("model",)),
    Measure("tokens.real", "sum", "{token}", "Real output tokens of calls with known forecast ones.", ("model",)),
)  # fmt: skip


class Metrics:
    """Takes what a dispatcher did, and keeps none of it: the parent of those that do.

    Cheap, safe to share between threads, and never in a caller's way: what cannot be recorded is lost, with one
    warning. No text of a query, key or conversation ever comes here. Forecast and real amounts are counted in pairs,
    on the same calls only, so that their sums can be compared. One per dispatcher: it has one queue. A pickled copy
    starts empty, with the defaults.
    """

    _recorders: Mapping[str, Callable[[float, tuple[str, ...]], object]] = {}  # by measure
    _warned = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def decided(self, model: str) -> None:
        """A caller got a model."""
        self._record({"decisions": 1}, model)

    def waited(self, seconds: float) -> None:
        """So long a caller waited until it got a model."""
        self._record({"wait.duration": seconds})

    def refused(self, reason: Reason) -> None:
        """A caller got no model."""
        self._record({"refusals": 1}, reason)

    def queue(self, depth: int) -> None:
        """So many callers have no model yet."""
        self._record({"queue.depth": depth})

    def solved(self, seconds: float, queries: int) -> None:
        """So many callers were decided together."""
        self._record({"solve.duration": seconds, "solve.queries": queries})

    def attempted(self, model: str, outcome: Outcome, seconds: float) -> None:
        """A call ended."""
        self._record({"attempts": 1}, model, outcome)
        self._record({"attempt.duration": seconds}, model, outcome)

    def cooled(self, model: str, seconds: float) -> None:
        """A model is left alone for so long."""
        self._record({"cooldowns": 1}, model)
        self._record({"cooldown.time": seconds}, model)

    def used(
        self,
        model: str,
        forecast_cost_usd: float | None,
        cost_usd: float | None,
        forecast_tokens: float | None,
        tokens: float | None,
    ) -> None:
        """What a call was to use, and what it used, in USD and output tokens; None or NaN where that is not known."""
        self._record({"cost.forecast": forecast_cost_usd, "cost.real": cost_usd}, model)
        self._record({"tokens.forecast": forecast_tokens, "tokens.real": tokens}, model)

    def _record(self, amounts: Mapping[str, float | None], *labels: str) -> None:
        """All of them, or none where one is not known."""
        if not self._recorders:
            return
        try:
            known = {name: float("nan" if amount is None else amount) for name, amount in amounts.items()}
            if all(0 <= amount < math.inf for amount in known.values()):
                values = tuple(label.encode(errors="replace").decode() for label in labels)  # exporters need Unicode
                for name, amount in known.items():
                    self._recorders[name](amount, values)
        except Exception as error:  # noqa: BLE001
            if not self._warned:
                self._warned = True
                logger.warning("metrics: %s could not be recorded (%s)", " and ".join(amounts), type(error).__name__)


class OpenTelemetryMetrics(Metrics):
    """Records through `opentelemetry-api`; who exports what, and where to, is the program's own affair.

    Instruments are called `eccos.decisions`, `eccos.wait.duration` and so on, with the attributes `eccos.model`,
    `eccos.outcome` and `eccos.reason`. Objects with the same meter add up, their queues too. What comes before the
    program has set its meter provider is lost.

    Args:
        meter: Default the program's, called "eccos".

    Raises:
        MissingExtraError: `opentelemetry-api` is not installed.

    Example:
        >>> from opentelemetry.sdk.metrics import MeterProvider
        >>> from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        >>> reader = InMemoryMetricReader()
        >>> metrics = OpenTelemetryMetrics(MeterProvider([reader]).get_meter("eccos"))
        >>> metrics.decided("small")
        >>> found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0]
        >>> found.name, found.data.data_points[0].value, dict(found.data.data_points[0].attributes)
        ('eccos.decisions', 1.0, {'eccos.model': 'small'})
    """

    def __init__(self, meter: "Meter | None" = None) -> None:
        try:
            from opentelemetry.metrics import get_meter
        except ImportError:
            raise MissingExtraError("opentelemetry-api", "metrics") from None
        meter = get_meter("eccos") if meter is None else meter
        self._depth = 0.0
        self._recorders = {measure.name: self._recorder(meter, measure) for measure in MEASURES}
        self._unlock()
        _in_every_child(self, OpenTelemetryMetrics._unlock)

    def __reduce__(self) -> tuple[Any, ...]:
        return default_metrics, ()  # where the copy goes the package may be missing

    def _unlock(self) -> None:
        self._lock = threading.Lock()

    def _recorder(self, meter: "Meter", measure: Measure) -> Callable[[float, tuple[str, ...]], object]:
        name, unit, says = f"eccos.{measure.name}", measure.unit, measure.description
        if measure.kind == "level":
            return partial(self._move, meter.create_up_down_counter(name, unit, says).add)
        put: Callable[..., object] = (
            meter.create_counter(name, unit, says).add
            if measure.kind == "sum"
            else meter.create_histogram(name, unit, says, explicit_bucket_boundaries_advisory=measure.buckets).record
        )
        keys = tuple(f"eccos.{label}" for label in measure.labels)
        return lambda amount, labels: put(amount, dict(zip(keys, labels, strict=True)))

    def _move(self, add: Callable[[float], object], depth: float, labels: tuple[str, ...]) -> None:
        """By how much it differs: so the queues of several dispatchers add up, which last values would not."""
        with self._lock:
            add(depth - self._depth)
            self._depth = depth


class PrometheusMetrics(Metrics):
    """Keeps what `prometheus_client` serves, with the labels `model`, `outcome` and `reason`.

    A forked child starts empty: its parent goes on counting what was before.

    Args:
        registry: Default one of its own, so that two of these do not clash.

    Attributes:
        registry: To be served.

    Raises:
        MissingExtraError: `prometheus_client` is not installed.
        ConfigError: The registry has these names already.

    Example:
        >>> metrics = PrometheusMetrics()
        >>> metrics.decided("small")
        >>> print(metrics.text().splitlines()[2])
        eccos_decisions_total{model="small"} 1.0
    """

    def __init__(self, registry: "CollectorRegistry | None" = None) -> None:
        try:
            from prometheus_client import CollectorRegistry
        except ImportError:
            raise MissingExtraError("prometheus_client", "metrics") from None
        self.registry = CollectorRegistry() if registry is None else registry
        self._start()
        try:
            self.registry.register(self)
        except ValueError as error:
            raise ConfigError("registry: it has measures of these names already; share one PrometheusMetrics, or give "
                              "each a registry of its own") from error  # fmt: skip
        _in_every_child(self, PrometheusMetrics._start)

    def text(self) -> str:
        """All of the registry, as Prometheus reads it."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()

    def collect(self) -> "Iterable[Metric]":
        """For the registry."""
        for instrument in self._instruments:
            yield from instrument.collect()

    def describe(self) -> "Iterable[Metric]":
        """As `collect`."""
        for instrument in self._instruments:
            yield from instrument.describe()

    def _start(self) -> None:
        # The registry has this object, not the instruments: so a forked child needs no lock of it to replace them.
        made = {measure.name: _prometheus(measure) for measure in MEASURES}
        self._instruments = [instrument for instrument, _ in made.values()]
        self._recorders = {name: put for name, (_, put) in made.items()}


def _prometheus(measure: Measure) -> tuple[Any, Callable[[float, tuple[str, ...]], object]]:
    """The instrument of a measure, and what records there."""
    from prometheus_client import Counter, Gauge, Histogram

    name, says, labels = measure.prometheus_name, measure.description, measure.labels
    instrument: Any
    put: Callable[..., object]
    if measure.kind == "sum":
        instrument, put = Counter(name, says, labels, registry=None), Counter.inc
    elif measure.kind == "level":
        # Where several processes write to one place, the queues of those alive add up.
        instrument, put = Gauge(name, says, labels, registry=None, multiprocess_mode="livesum"), Gauge.set
    else:
        instrument, put = Histogram(name, says, labels, registry=None, buckets=measure.buckets), Histogram.observe
    return instrument, lambda amount, values: put(instrument.labels(*values) if values else instrument, amount)


def _in_every_child(metrics: Any, restart: Callable[[Any], object]) -> None:
    """Restart it in forked children, where its locks may be held for ever."""
    if hasattr(os, "register_at_fork"):
        me = weakref.ref(metrics)
        os.register_at_fork(after_in_child=lambda: None if (found := me()) is None else restart(found))


def default_metrics() -> Metrics:
    """What a dispatcher records to unless it is told: OpenTelemetry where its API is installed, else nothing."""
    try:
        return OpenTelemetryMetrics()
    except Exception as error:  # noqa: BLE001  # its version, its settings: no reason not to dispatch
        if not isinstance(error, MissingExtraError):
            logger.warning("metrics: OpenTelemetry cannot be used (%s), and nothing is recorded", type(error).__name__)
        return Metrics()
