"""Serving: limits that hold while calls run, waiting callers decided together, fallback, feedback."""

from eccos_integrations.serving.dispatch import Dispatcher
from eccos_integrations.serving.feedback import FeedbackLog
from eccos_integrations.serving.limits import Budget, Ledger, StoreError, open_ledger
from eccos_integrations.serving.metrics import Metrics, OpenTelemetryMetrics, PrometheusMetrics
from eccos_integrations.serving.window import BackpressureError, Options, Served, Ticket, Usage

__all__ = [
    "BackpressureError",
    "Budget",
    "Dispatcher",
    "FeedbackLog",
    "Ledger",
    "Metrics",
    "OpenTelemetryMetrics",
    "Options",
    "PrometheusMetrics",
    "Served",
    "StoreError",
    "Ticket",
    "Usage",
    "open_ledger",
]
