"""Training: samplers, penalty, shrinking, the loop, checkpoints, evaluation."""

from maestro_edge.training.checkpoint import Checkpoint, load_checkpoint, restore_model, save_checkpoint
from maestro_edge.training.evaluation import Score, batches, evaluate, recalibrate
from maestro_edge.training.loop import Epoch, TrainSet, TrainSettings, train

__all__ = [
    "Checkpoint",
    "Epoch",
    "Score",
    "TrainSet",
    "TrainSettings",
    "batches",
    "evaluate",
    "load_checkpoint",
    "recalibrate",
    "restore_model",
    "save_checkpoint",
    "train",
]
