"""XNNPACK's graphs in ExecuTorch files, read and written by the schema that executorch brings."""

from __future__ import annotations

import importlib.util
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["TRANSPOSED", "graph_schema", "read_graph", "tensors_of", "write_graph"]

_ALIGNMENT = 16
"""Of what follows a blob's header, and of its end."""
TRANSPOSED = 1
"""XNN_FLAG_TRANSPOSE_WEIGHTS: they are stored as (in, out)."""


@cache
def graph_schema() -> Any:
    """The classes of flatc's object API: XNNGraphT, XNodeUnion and so on."""
    from executorch.backends.xnnpack import serialization
    from executorch.exir._serialize._flatbuffer import _run_flatc

    with tempfile.TemporaryDirectory() as folder:
        schema = Path(folder) / "schema.fbs"
        schema.write_bytes(resources.files(serialization).joinpath(schema.name).read_bytes())
        _run_flatc(["--python", "--gen-object-api", "--gen-onefile", "-o", folder, str(schema)])
        spec = importlib.util.spec_from_file_location("xnnpack_schema", Path(folder) / "schema_generated.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    # flatc spells what makes a union in another case where it is called than where it is defined.
    made = {name.lower(): found for name, found in vars(module).items() if name.endswith("Creator")}
    for union in ("XNNQuantParams", "XNodeUnion", "XValueUnion"):
        setattr(module, f"{union}Creator", made[f"{union}Creator".lower()])
    return module


def read_graph(blob: bytes) -> Any:
    """The XNNGraphT of a delegate's blob."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader

    header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
    content = blob[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size]
    schema = graph_schema()
    return schema.XNNGraphT.InitFromObj(schema.XNNGraph.GetRootAs(content, 0))


def write_graph(graph: Any) -> bytes:
    """The blob of an XNNGraphT whose constants are all outside of it, by name."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader

    from maestro_edge.runtimes.flatbuffer import pack

    content, begin = pack(graph, b"XN01"), 2 * _ALIGNMENT
    content += bytes(-len(content) % _ALIGNMENT)
    header = XNNHeader(begin, len(content), begin + len(content), 0).to_bytes()
    return bytes(header.ljust(begin, b"\0") + content)


def tensors_of(graph: Any) -> dict[int, Any]:
    """XNNTensorValueT by their number; a quantised value has its own inside."""
    values = [value.xvalueUnion for value in graph.xvalues]
    tensors = [getattr(value, "tensorValue", value) for value in values]
    return {tensor.idOut: tensor for tensor in tensors}
