"""Training: samplers, penalty, shrinking, the loop, checkpoints, evaluation."""

from maestro_edge.training.checkpoint import Checkpoint, load_checkpoint, restore_model, save_checkpoint
from maestro_edge.training.evaluation import Inputs, Score, batches, evaluate, recalibrate
from maestro_edge.training.loop import start_tracking, train
from maestro_edge.training.ordering import Ordering
from maestro_edge.training.samplers import (
    AlternatingSampler,
    ChainSampler,
    IndependentSampler,
    PairSampler,
    Sampler,
    SandwichSampler,
    SharedSampler,
)
from maestro_edge.training.settings import Epoch, TrainSet, TrainSettings
from maestro_edge.training.target import Target

__all__ = [
    "AlternatingSampler",
    "ChainSampler",
    "Checkpoint",
    "Epoch",
    "IndependentSampler",
    "Inputs",
    "Ordering",
    "PairSampler",
    "Sampler",
    "SandwichSampler",
    "Score",
    "SharedSampler",
    "Target",
    "TrainSet",
    "TrainSettings",
    "batches",
    "evaluate",
    "load_checkpoint",
    "recalibrate",
    "restore_model",
    "save_checkpoint",
    "start_tracking",
    "train",
]
