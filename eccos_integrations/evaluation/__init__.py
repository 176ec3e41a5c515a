"""Evaluation on held-out outcomes: baselines, metrics, harness, report."""

from eccos_integrations.evaluation.harness import Evaluation, Row, evaluate
from eccos_integrations.evaluation.metrics import Realised, realise

__all__ = ["Evaluation", "Realised", "Row", "evaluate", "realise"]
