"""Controllers decide masks during a training run; the loop stays the user's."""

from fxprune.controllers.auto_train_once import AutoTrainOnce
from fxprune.controllers.complexity_aware import ComplexityAware
from fxprune.controllers.early import EarlyFinishWarning
from fxprune.controllers.schedule import Schedule

__all__ = ["AutoTrainOnce", "ComplexityAware", "EarlyFinishWarning", "Schedule"]
