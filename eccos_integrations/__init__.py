"""ECCOS: choose one LLM per query, jointly, at least cost under a quality floor and load limits."""

from eccos_integrations.assignment import AssignmentProblem, Prices, Solution, solve
from eccos_integrations.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    EccosError,
    InfeasibleError,
    MissingExtraError,
    NoCapacityError,
)
from eccos_integrations.guarantee import Guarantee
from eccos_integrations.outcomes import OutcomeTable
from eccos_integrations.plan import Decision, Feedback, Plan
from eccos_integrations.policy import Policy
from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.predictors import Forecast
from eccos_integrations.router import Router
from eccos_integrations.sample import load_sample

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "AssignmentProblem",
    "ConfigError",
    "DataError",
    "Decision",
    "EccosError",
    "Feedback",
    "Forecast",
    "Guarantee",
    "InfeasibleError",
    "MissingExtraError",
    "Model",
    "ModelPool",
    "NoCapacityError",
    "OutcomeTable",
    "Plan",
    "Policy",
    "Prices",
    "Router",
    "Solution",
    "load_sample",
    "solve",
]
