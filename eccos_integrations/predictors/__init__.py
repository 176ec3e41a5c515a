"""Predictors: what each model will do with a query it has not seen."""

from eccos_integrations.predictors.base import Forecast, ForecastMaker, Predictor
from eccos_integrations.predictors.prior import PriorPredictor
from eccos_integrations.predictors.retrieval import RetrievalPredictor
from eccos_integrations.predictors.trained import TrainedPredictor

PREDICTORS: dict[str, type[Predictor]] = {
    predictor.name: predictor for predictor in (PriorPredictor, RetrievalPredictor, TrainedPredictor)
}

__all__ = [
    "PREDICTORS",
    "Forecast",
    "ForecastMaker",
    "Predictor",
    "PriorPredictor",
    "RetrievalPredictor",
    "TrainedPredictor",
]
