"""What a router is compared with: rules that need no optimiser, and bounds no router can beat.

Each gives the column of every query, (N,).
"""

import numpy as np

from eccos_integrations.assignment.problem import IntArray
from eccos_integrations.outcomes import OutcomeTable, column_means
from eccos_integrations.predictors import Forecast


def one_model(table: OutcomeTable, name: str) -> IntArray:
    """Every query to the same model."""
    return np.full(len(table), table.models.index(name))


def hindsight_best(table: OutcomeTable) -> str:
    """The model with the highest mean quality on these very outcomes; nobody can know it beforehand."""
    return table.models[int(np.argmax(column_means(table.quality, unobserved=-1.0)))]


def cheapest(table: OutcomeTable) -> str:
    """The model with the lowest mean cost on these outcomes."""
    return table.models[int(np.argmin(column_means(table.cost_usd, unobserved=np.inf)))]


def random_choice(table: OutcomeTable, *, seed: int) -> IntArray:
    """Each query to a model drawn evenly."""
    return np.random.default_rng(seed).integers(len(table.models), size=len(table))


def round_robin(table: OutcomeTable) -> IntArray:
    """The models in turn."""
    return np.arange(len(table)) % len(table.models)


def threshold(forecast: Forecast, floor: float) -> IntArray:
    """Per query the cheapest model whose forecast reaches the floor, else the one with the highest forecast.

    Source: AIOS' live rule, `_select_model_single` (agiresearch/AIOS, aios/llm_core/routing.py).
    """
    reaches = forecast.quality >= floor
    cheapest_reaching = np.argmin(np.where(reaches, forecast.cost_usd, np.inf), axis=1)
    chosen: IntArray = np.where(reaches.any(axis=1), cheapest_reaching, np.argmax(forecast.quality, axis=1))
    return chosen


def oracle(table: OutcomeTable) -> IntArray:
    """Per query the cheapest of the models that in fact answered it best."""
    quality = np.nan_to_num(table.quality, nan=-1.0)
    is_best = quality == quality.max(axis=1, keepdims=True)
    cost = np.nan_to_num(table.cost_usd, nan=np.finfo(float).max)
    chosen: IntArray = np.argmin(np.where(is_best, cost, np.inf), axis=1)
    return chosen
