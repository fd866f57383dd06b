"""What test_distributed.py starts in several processes: train() with its checkpoint in argv[1], then FSDP."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from maestro_edge.errors import TrainingError
from maestro_edge.ordered import order, ordered_layers
from maestro_edge.training import Ordering, Target, TrainSettings, train
from tests.conftest import tiny_data

SETTINGS = TrainSettings(
    epochs=4,
    batch_size=16,
    lr=0.05,
    bf16=False,
    sampler="sandwich",
    target=Target(macs=60_000),
)


class Plain(nn.Module):
    """A network without BatchNorm, whose statistics would be each process's own: (N, 1, 8, 8) → (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(64, 384)
        self.hidden2 = nn.Linear(384, 128)
        self.head = nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.hidden1(x.flatten(1)))
        logits: Tensor = self.head(torch.relu(self.hidden2(x)))
        return logits


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """An augmentation that draws from the generator, one number an image."""
    return images + 0.1 * torch.rand(len(images), 1, 1, 1, generator=generator)


def run(folder: Path | None, *, accumulate: int = 1, **options: object) -> nn.Module:
    """Train from the same start everywhere."""
    import dataclasses

    torch.manual_seed(0)
    data = dataclasses.replace(tiny_data(), augment=shifted)
    settings = SETTINGS.model_copy(update={"accumulate": accumulate})
    model, _ = train(order(Plain()), data, settings, folder=folder, rebuild=Plain, **options)  # type: ignore[arg-type]
    return model


def own_loop(rank: int = 0, world: int = 1) -> tuple[list[float], str]:
    """Mean losses of an own loop, and why a penalty is refused; several processes shard the parameters (FSDP)."""
    torch.manual_seed(0)
    model, data, losses, refusal = order(Plain()), tiny_data(), [], ""
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        for layer in ordered_layers(model).values():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    ordering = Ordering(model, optimizer)
    for step in range(8):
        chosen = torch.arange(8 * step, 8 * step + 8)[rank::world]
        inputs, targets = data.prepare(data.inputs[chosen]), data.targets[chosen]
        optimizer.zero_grad()
        loss = ordering.backward(partial(model, inputs), partial(F.cross_entropy, target=targets))
        optimizer.step()
        ordering.update()
        losses.append(loss)
    try:
        Ordering(model, optimizer, penalty=0.001)
    except TrainingError as error:
        refusal = str(error)
    return losses, refusal


def sharded(path: Path) -> None:
    """Write to `path` what own_loop() says on two processes: losses over both, and the refusal."""
    losses, refusal = own_loop(distributed.get_rank(), distributed.get_world_size())
    total = torch.tensor(losses)
    distributed.all_reduce(total)
    if distributed.get_rank() == 0:
        path.write_text(json.dumps([(total / distributed.get_world_size()).tolist(), refusal]))
    distributed.barrier()
    sys.stderr.flush()
    # All is computed and written: what torch's threads do at the interpreter's end is not tested here. A run of
    # this job was once aborted (SIGABRT) for a reason that was not found.
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))  # its accelerator has the processes join a group
    sharded(Path(sys.argv[1]) / "sharded.json")
