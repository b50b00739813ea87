"""One run as frozen dataclasses: data, model, loss, optimizer, schedule, evaluation, compute.

Every value is checked when it is made and none is changed afterwards. The command line, the YAML file of a
run and the tuner all read these same fields (`overrides.py` changes, writes and reads them).
"""

from tuplet.config.data import Augmentation, DataConfig, Source
from tuplet.config.loss import Distance, HypergraphConfig, Implementation, LossConfig, LossName, Variance
from tuplet.config.optimizer import OptimizerConfig, ScheduleConfig
from tuplet.config.run import (
    Accelerator,
    BatchNormFreeze,
    ComputeConfig,
    Engine,
    EvaluationConfig,
    ModelConfig,
    Pooling,
    RunConfig,
    Selection,
    TrackerName,
    shortened,
)

__all__ = [
    "Accelerator",
    "Augmentation",
    "BatchNormFreeze",
    "ComputeConfig",
    "DataConfig",
    "Distance",
    "Engine",
    "EvaluationConfig",
    "HypergraphConfig",
    "Implementation",
    "LossConfig",
    "LossName",
    "ModelConfig",
    "OptimizerConfig",
    "Pooling",
    "RunConfig",
    "ScheduleConfig",
    "Selection",
    "Source",
    "TrackerName",
    "Variance",
    "shortened",
]
