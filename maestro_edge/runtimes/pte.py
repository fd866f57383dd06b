"""weights_of(): what the kernels of an ExecuTorch file multiply with, in the order in which they run."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["weights_of"]


def weights_of(path: Path) -> list[tuple[int, ...]]:
    """Shapes of the weights of every Linear and Conv2d that XNNPACK computes, in execution order.

    (out, in) or (out, kh, kw, in / groups), as the file itself tells: torch sorts the graph of a delegate anew, so
    that the factors of parallel branches take turns, and times in that order say not whose they are.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    blobs = [
        program.backend_delegate_data[delegate.processed.index].data
        for plan in program.execution_plan
        for delegate in plan.delegates
    ]
    return [shape for blob in blobs for shape in _shapes(bytes(blob))]


def _shapes(blob: bytes) -> Iterator[tuple[int, ...]]:
    graph = _graph(blob)
    dims = {}
    for value in graph["xvalues"]:
        found = value["xvalue_union"]
        tensor = found.get("tensor_value", found)  # a quantized one has it inside
        dims[tensor["id_out"]] = tuple(tensor.get("dims", ()))
    for node in graph["xnodes"]:
        kind, found = node["xnode_union_type"], node["xnode_union"]
        if kind == "XNNFullyConnected":
            shape = dims[found["filter_id"]]
            yield shape[::-1] if found["flags"] & _TRANSPOSED else shape
        elif kind == "XNNConv2d":
            yield dims[found["filter_id"]]
        elif kind == "XNNDepthwiseConv2d":
            _, *kernel, channels = dims[found["filter_id"]]
            yield channels, *kernel, 1


_TRANSPOSED = 1
"""XNN_FLAG_TRANSPOSE_WEIGHTS: they are stored as (in, out)."""


def _graph(blob: bytes) -> Any:
    """XNNPACK's part of a file, as its own schema names what is there."""
    from executorch.backends.xnnpack import serialization
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(resources.files(serialization).joinpath("schema.fbs").read_bytes())
        binary.write_bytes(blob[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(binary))
        text = binary.with_suffix(".json").read_text()
    return json.loads(re.sub(r": -?(inf|nan)\b", ": null", text))  # bounds of activations: no JSON, and not needed
