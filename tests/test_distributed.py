"""Beyond one process: torchrun, micro-batches, trackers, and a process that is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from maestro_edge.errors import TrainingError
from maestro_edge.ordered import ordered_layers
from maestro_edge.training import load_checkpoint, restore_model
from tests.distributed_job import Plain, own_loop, run

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def alone() -> nn.Module:
    """The training on one process."""
    return run(None)


def assert_equal(found: nn.Module, wanted: nn.Module) -> None:
    state = found.state_dict()
    for name, value in wanted.state_dict().items():
        assert state[name].shape == value.shape, name
        torch.testing.assert_close(state[name], value, atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes under torchrun leave: the checkpoint of a training, and of an own loop sharded.json."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.distributed_job", str(folder)],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:4000]
    return folder


def test_two_processes_train_what_one_does(together: Path, alone: nn.Module) -> None:
    """Under torchrun with gloo: same batches, same ranks, same shrinking, and so the same weights."""
    found = restore_model(Plain(), *load_checkpoint(together))

    ranks = {name: layer.rank for name, layer in ordered_layers(found).items()}
    assert ranks == {name: layer.rank for name, layer in ordered_layers(alone).items()}
    assert min(ranks.values()) < 60
    assert_equal(found, alone)


def test_sharded_factors_train_alike_and_are_not_penalised(together: Path) -> None:
    """FSDP: an own loop on two processes is the one on whole parameters; what needs those is refused."""
    losses, refusal = json.loads((together / "sharded.json").read_text())

    alone, accepted = own_loop()

    assert losses == pytest.approx(alone, rel=1e-4)
    assert "the factors of 'hidden1' are sharded (FSDP)" in refusal
    assert accepted == ""


def test_train_refuses_fsdp_before_any_step() -> None:
    """Its shrinking slices whole parameters; the accelerator is asked, as torchrun would have set it up."""

    class Sharded:
        distributed_type = "DistributedType.FSDP"

    with pytest.raises(TrainingError, match="FSDP shards them: use DDP"):
        run(None, accelerator=Sharded())


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_train_what_the_whole_batch_does(accumulate: int, alone: nn.Module) -> None:
    """Gradient accumulation changes memory, not the result."""
    assert_equal(run(None, accumulate=accumulate), alone)


def test_a_killed_training_leaves_a_checkpoint_that_loads_and_goes_on(tmp_path: Path, alone: nn.Module) -> None:
    """SIGKILL at any moment: what the folder holds is whole, and the resumed run ends where it would have."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accelerate", "tests.distributed_job"])  # imported once, not by each process
    for delay_s in (0.0, 0.05, 0.13):
        deadline = time.monotonic() + 600
        before = (tmp_path / "checkpoint.json").stat().st_mtime if (tmp_path / "checkpoint.json").exists() else 0.0
        process = context.Process(target=run, args=(tmp_path,))
        process.start()
        while process.is_alive() and time.monotonic() < deadline:
            path = tmp_path / "checkpoint.json"
            if path.exists() and path.stat().st_mtime > before:
                break
            time.sleep(0.005)
        time.sleep(delay_s)
        process.kill()
        process.join()

        checkpoint, tensors = load_checkpoint(tmp_path)
        restore_model(Plain(), checkpoint, tensors)

    assert_equal(run(tmp_path), alone)


def test_trackers_of_accelerate_get_the_history(tmp_path: Path) -> None:
    """TensorBoard's event file is written where the accelerator was told to."""
    from accelerate import Accelerator

    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("run")

    run(None, accelerator=accelerator)

    accelerator.end_training()
    events = list(tmp_path.rglob("events.out.tfevents.*"))
    assert events
    assert events[0].stat().st_size > 100
