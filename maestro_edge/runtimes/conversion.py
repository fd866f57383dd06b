"""What every exporter needs around a converter: a model it cannot misread, and its failure in one line."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from maestro_edge.errors import ExportError

__all__ = ["contiguous_copy", "export_error", "first_line"]


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
