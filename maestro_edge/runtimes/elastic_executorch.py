"""Elastic .pte files: methods whose weights overlap, and second layers of Linears stored by rank.

ExecuTorch keeps every constant that is not equal to another in a segment of its own; the program tells each one's
offset and size, and nothing forbids that two overlap.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import torch
from torch import fx

from maestro_edge.errors import ExportError
from maestro_edge.runtimes.elastic import owners
from maestro_edge.runtimes.norms import parameter, set_parameter

__all__ = ["overlap_segments", "transpose_linears"]

_ALIGNMENT = 128
"""Of segments, as ExecuTorch's own serializer places them."""
_SEGMENTS = 4
"""The field of `Program` that lists them (schema/program.fbs)."""


def transpose_linears(graphs: Mapping[str, fx.GraphModule]) -> dict[str, fx.GraphModule]:
    """Make the second layers of pairs products with a transposed weight, (r, m), where plans differ in rank.

    Then a lower rank is the beginning of a higher one; XNNPACK takes the weight as it is. It has no such
    convolution: those of width 1 are stored with each plan.
    """
    linears = {name: _linears(graph) for name, graph in graphs.items()}
    for target in {target: None for found in linears.values() for target in found}:
        members = [(graphs[name], found[target]) for name, found in linears.items() if target in found]
        weights = [parameter(graph, node.args[1]) for graph, node in members]
        largest = max(weights, key=lambda weight: weight.shape[1])
        if len({weight.shape[1] for weight in weights}) == 1:
            continue
        for (graph, node), weight in zip(members, weights, strict=True):
            if weight.shape[0] == largest.shape[0] and torch.equal(largest[:, : weight.shape[1]], weight):
                _transpose(graph, node, weight)
    for graph in graphs.values():
        graph.graph.eliminate_dead_code()
    return {name: fx.GraphModule(graph, graph.graph) for name, graph in graphs.items()}


def _linears(graph: fx.GraphModule) -> dict[str, fx.Node]:
    return {
        str(node.args[1].target): node
        for node in graph.graph.nodes
        if node.target is torch.ops.aten.linear.default and node.args[1].op == "get_attr"
    }


def _transpose(graph: fx.GraphModule, node: fx.Node, weight: torch.Tensor) -> None:
    aten = torch.ops.aten
    x, outputs = node.args[0], weight.shape[0]
    shape = [int(size) for size in node.meta["val"].shape]
    name = str(node.args[1].target).replace(".", "_")  # type: ignore[union-attr]
    bias = node.args[2] if len(node.args) > 2 else None
    if bias is None:
        bias = set_parameter(graph, node, f"{name}_zeros", torch.zeros(outputs))
    with graph.graph.inserting_before(node):
        flat = (
            x if len(shape) == 2 else graph.graph.call_function(aten.reshape.default, (x, [-1, weight.shape[1]]))
        )
        constant = set_parameter(graph, node, f"{name}_transposed", weight.T)
        y = graph.graph.call_function(aten.addmm.default, (bias, flat, constant))
        if len(shape) != 2:
            y = graph.graph.call_function(aten.reshape.default, (y, shape))
    node.replace_all_uses_with(y)
    graph.graph.erase_node(node)


def overlap_segments(content: bytes) -> bytes:
    """The .pte file with every segment that is the beginning of another in the other's place.

    Raises:
        ExportError: it has another layout than that of ExecuTorch 1.5.
    """
    if content[8:12] != b"eh00" or struct.unpack_from("<I", content, 12)[0] < 32:
        raise ExportError("this ExecuTorch writes files of another layout: export the plans apart")
    base, length = struct.unpack_from("<QQ", content, 24)
    program, data = bytearray(content[:base]), memoryview(content)[base : base + length]
    fields = _segment_fields(program)
    sizes = [_read(program, size) for _, size in fields]
    starts = [_read(program, offset) for offset, _ in fields]
    contents = [bytes(data[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
    kept, places = bytearray(), dict[int, int]()
    found = owners(contents)
    for index, owner in enumerate(found):
        # An offset of 0 is not written at all, so the first segment must stay the first.
        if index == owner or fields[index][0] is None:
            kept += bytes(-len(kept) % _ALIGNMENT)
            places[index] = len(kept)
            kept += contents[index]
    for index, owner in enumerate(found):
        offset = fields[index][0]
        if offset is not None:
            struct.pack_into("<Q", program, offset, places[owner])
    struct.pack_into("<Q", program, 32, len(kept))
    return bytes(program + kept)


def _read(program: bytearray, at: int | None) -> int:
    return 0 if at is None else int(struct.unpack_from("<Q", program, at)[0])


def _segment_fields(program: bytearray) -> list[tuple[int | None, int | None]]:
    """Where the offset and the size of every segment stand; None: a 0 that is not written."""
    root = _follow(program, 0)
    listed = _field(program, root, _SEGMENTS)
    if listed is None:
        raise ExportError("the ExecuTorch program has no segments: export the plans apart")
    vector = _follow(program, listed)
    tables = [_follow(program, vector + 4 + 4 * index) for index in range(_word(program, vector))]
    return [(_field(program, table, 0), _field(program, table, 1)) for table in tables]


def _word(program: bytearray, at: int) -> int:
    return int(struct.unpack_from("<I", program, at)[0])


def _follow(program: bytearray, at: int) -> int:
    return at + _word(program, at)


def _field(program: bytearray, table: int, index: int) -> int | None:
    """Where a field of a flatbuffer's table stands, by the table's own list of offsets."""
    listed = table - int(struct.unpack_from("<i", program, table)[0])
    size, entry = struct.unpack_from("<H", program, listed)[0], 4 + 2 * index
    offset = struct.unpack_from("<H", program, listed + entry)[0] if entry < size else 0
    return table + offset if offset else None
