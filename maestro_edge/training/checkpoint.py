"""Checkpoints: a folder with one JSON file and the safetensors file it names. Never pickle.

The JSON is written last and atomically, and names the weights by their hash: whenever the process is killed,
the folder holds the last complete checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from maestro_edge.errors import CheckpointError, ModelError
from maestro_edge.ordered import OrderedSpatialConv2d, order, ordered_layers
from maestro_edge.values import Value, write_atomically

__all__ = ["Checkpoint", "load_checkpoint", "restore_model", "save_checkpoint"]

_JSON = "checkpoint.json"


class Checkpoint(Value):
    """What stands beside the weights: enough to rebuild the model and to go on exactly where it stopped."""

    schema_version: Literal[1] = 1
    model: str
    data: str
    input_shape: tuple[int, ...]
    classes: int
    ranks: dict[str, int]
    spatial: tuple[str, ...] = ()
    weights: str
    sha256: str
    training: dict[str, Any] = Field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    *,
    name: str,
    data: str,
    input_shape: tuple[int, ...],
    classes: int,
    training: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
) -> Checkpoint:
    """Write the weights, then the JSON that names them, then drop the weights it named before."""
    state = {f"model.{key}": value.contiguous() for key, value in model.state_dict().items()}
    content = save_tensors({**state, **{k: v.contiguous() for k, v in (tensors or {}).items()}})
    layers = ordered_layers(model)
    digest = hashlib.sha256(content).hexdigest()
    checkpoint = Checkpoint(
        model=name,
        data=data,
        input_shape=input_shape,
        classes=classes,
        ranks={layer: module.rank for layer, module in layers.items()},
        spatial=tuple(layer for layer, module in layers.items() if isinstance(module, OrderedSpatialConv2d)),
        weights=f"weights-{digest[:12]}.safetensors",
        sha256=digest,
        training=training or {},
    )
    write_atomically(folder / checkpoint.weights, content)
    write_atomically(folder / _JSON, checkpoint.model_dump_json(indent=1).encode())
    for old in folder.glob("weights-*.safetensors"):
        if old.name != checkpoint.weights:
            old.unlink()
    return checkpoint


def load_checkpoint(folder: Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    """The JSON part and all tensors of a checkpoint.

    Raises:
        CheckpointError: it is missing, truncated, altered or of another schema.
    """
    path = Path(folder) / _JSON
    try:
        raw = json.loads(path.read_bytes())
        if raw.get("schema_version") != 1:
            raise CheckpointError(f"{path}: schema {raw.get('schema_version')!r}, this version reads schema 1")
        checkpoint = Checkpoint.model_validate(raw)
        if Path(checkpoint.weights).name != checkpoint.weights:
            raise CheckpointError(f"{path}: names weights outside its folder: {checkpoint.weights!r}")
        content = (Path(folder) / checkpoint.weights).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: not a checkpoint ({Path(error.filename).name} is missing)") from error
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}): train again") from error
    if hashlib.sha256(content).hexdigest() != checkpoint.sha256:
        raise CheckpointError(
            f"{folder}/{checkpoint.weights}: truncated or altered ({len(content)} bytes do not have the "
            "recorded sha256): copy it again or train again"
        )
    try:
        return checkpoint, load_tensors(content)
    except SafetensorError as error:
        raise CheckpointError(f"{folder}/{checkpoint.weights}: not safetensors ({error})") from error


def restore_model(dense: nn.Module, checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> nn.Module:
    """The saved model: `dense` with the saved layers ordered at the saved ranks, and the saved weights.

    Raises:
        CheckpointError: the weights do not fit `dense`.
    """
    ranks = checkpoint.ranks
    try:
        model = order(dense, where=list(ranks), spatial=checkpoint.spatial) if ranks else dense
        for name, layer in ordered_layers(model).items():
            layer.keep(ranks[name])
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        model.load_state_dict(weights)
    except (RuntimeError, KeyError, ModelError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"the checkpoint does not fit model {checkpoint.model!r}: {reason}") from error
    return model
