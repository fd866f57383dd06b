"""What every exporter needs around a converter: a model it cannot misread, samples, its failure in one line."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.fx.traceback import NodeSource

from maestro_edge.errors import ExportError
from maestro_edge.values import Layout, Precision

__all__ = [
    "calibration_inputs",
    "contiguous_copy",
    "converting",
    "export_error",
    "exported_program",
    "first_line",
    "images_as",
    "model_for",
    "names_for",
    "refuse_precision",
]


@contextmanager
def converting() -> Iterator[None]:
    """Spare converters two things that cost them much of their time, and change nothing of what they write.

    Python's cycle collector walks their growing graphs over and over: what the block leaves is young still, and
    goes with the first collection after it. And every pass copies where a node came from, once more with all that
    went before: nothing changes what is noted there, so that nodes share it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    setattr(NodeSource, "__deepcopy__", lambda source, memo: source)  # noqa: B010 (it has none to assign to)
    try:
        yield
    finally:
        with suppress(AttributeError):  # another thread's block may have ended before
            delattr(NodeSource, "__deepcopy__")
        if was_enabled:
            gc.enable()


def contiguous_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose tensors are all contiguous.

    litert_torch 0.10 makes others contiguous in a temporary and caches it by address; once the address is
    used again, a layer silently gets the weights of another one of the same shape
    (google-ai-edge/litert-torch issues 1061 and 1238). ExecuTorch 1.5 refuses them. Training in
    channels_last makes such weights.
    """
    copied = copy.deepcopy(model).eval()
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.data.contiguous()
    return copied


_POOLS: Final = {torch.ops.aten.max_pool2d.default, torch.ops.aten.avg_pool2d.default}


def exported_program(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The graph of a copy of `model`, in which every pool tells its stride.

    PyTorch leaves out one that is the kernel's size; coremltools 9.0 then takes the pool for one without inputs.
    """
    program = torch.export.export(contiguous_copy(model), inputs)
    for node in program.graph.nodes:
        if node.target in _POOLS and len(node.args) == 2:
            node.args = (*node.args, node.args[1])
    return program


class _ChannelsLast(nn.Module):
    """A model that is fed (N, H, W, C)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.model(images.permute(0, 3, 1, 2))
        return outputs


def model_for(layout: Layout, model: nn.Module) -> nn.Module:
    """`model` as it is, fed (N, C, H, W), or behind a permutation, fed (N, H, W, C).

    LiteRT computes in NHWC and loses a transposition by it. ExecuTorch and Core ML gain one operator, which
    spares the app the same work.
    """
    return model if layout == "NCHW" else _ChannelsLast(model).eval()


def names_for(layout: Layout, names: Sequence[str]) -> list[str]:
    """What model_for() made of the names of modules."""
    return [name if layout == "NCHW" else f"model.{name}" for name in names]


def images_as(layout: Layout, images: Tensor) -> Tensor:
    """Images (N, C, H, W) in a layout."""
    return images if layout == "NCHW" else images.permute(0, 2, 3, 1).contiguous()


def calibration_inputs(inputs: tuple[Tensor, ...], calibration: Sequence[Tensor] | None) -> list[Tensor]:
    """The batches cut into inputs of the shape that is exported; what is left of a batch is not used.

    Raises:
        ExportError: there are none, or they are of another shape.
    """
    if len(inputs) != 1:
        raise ExportError(f"int8-static takes models of one input, not {len(inputs)}: wrap it")
    shape = inputs[0].shape
    for batch in calibration or ():
        if batch.shape[1:] != shape[1:]:
            raise ExportError(
                f"calibration samples have shape {tuple(batch.shape[1:])}, the input "
                f"{tuple(shape[1:])}: give what the app feeds"
            )
    parts = [part for batch in calibration or () for part in torch.split(batch, shape[0]) if part.shape == shape]
    if not parts:
        raise ExportError(
            "int8-static takes its ranges from samples and got none: give `calibration`, some "
            "batches of the training set, or choose int8-dynamic"
        )
    return [part.contiguous() for part in parts]


def refuse_precision(runtime: str, precision: Precision, offered: Sequence[Precision]) -> None:
    """Refuse what a runtime has no files for.

    Raises:
        ExportError: tells what it has.
    """
    if precision not in offered:
        *others, last = offered
        choice = f"{', '.join(others)} or {last}" if others else last
        raise ExportError(f"{runtime} has no use for {precision}: choose {choice}")


def export_error(runtime: str, path: Path, error: Exception) -> ExportError:
    """A converter's failure, which may fill a page, as one line with what to do."""
    return ExportError(
        f"{path.name}: cannot be exported to {runtime} ({first_line(error)}): replace what it names, or leave "
        f"{runtime} out"
    )


def first_line(error: Exception) -> str:
    """The first line of a message that says something; the exception's name when none does."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200]
