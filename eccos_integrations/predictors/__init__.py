"""Predictors: what each model will do with a query it has not seen."""

from eccos_integrations.predictors.base import Predictor
from eccos_integrations.predictors.clusters import ClustersPredictor
from eccos_integrations.predictors.forecast import Forecast, ForecastMaker
from eccos_integrations.predictors.hybrid import PARTS, HybridPredictor
from eccos_integrations.predictors.prior import PriorPredictor
from eccos_integrations.predictors.retrieval import RetrievalPredictor
from eccos_integrations.predictors.ridge import RidgePredictor
from eccos_integrations.predictors.trained import TrainedPredictor
from eccos_integrations.predictors.trees import TreesPredictor

PREDICTORS: dict[str, type[Predictor]] = {**PARTS, HybridPredictor.name: HybridPredictor}

__all__ = [
    "PARTS",
    "PREDICTORS",
    "ClustersPredictor",
    "Forecast",
    "ForecastMaker",
    "HybridPredictor",
    "Predictor",
    "PriorPredictor",
    "RetrievalPredictor",
    "RidgePredictor",
    "TrainedPredictor",
    "TreesPredictor",
]
