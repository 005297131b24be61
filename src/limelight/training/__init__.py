"""Training: settings, the loop, losses, schedules and checkpoints."""

from limelight.training.config import DataConfig, TrainingConfig
from limelight.training.losses import output_loss
from limelight.training.run import resume, train
from limelight.training.settings import sort_settings

__all__ = ["DataConfig", "TrainingConfig", "output_loss", "resume", "sort_settings", "train"]
