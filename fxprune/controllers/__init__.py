"""Controllers decide masks during a training run; the loop stays the user's."""

from fxprune.controllers.auto_train_once import AutoTrainOnce, EarlyFinishWarning
from fxprune.controllers.schedule import Schedule

__all__ = ["AutoTrainOnce", "EarlyFinishWarning", "Schedule"]
