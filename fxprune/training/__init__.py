"""A training runtime for the command line and for those who have no loop of their own."""

from fxprune.training.result import NetworkFigures, TrainingResult
from fxprune.training.run import train
from fxprune.training.settings import TrainSettings
from fxprune.training.sources import Datasets

__all__ = ["Datasets", "NetworkFigures", "TrainSettings", "TrainingResult", "train"]
