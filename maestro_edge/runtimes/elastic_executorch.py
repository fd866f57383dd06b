"""Elastic .pte files: methods whose weights overlap, and second layers of pairs stored by rank.

ExecuTorch keeps every constant that is not equal to another in a segment of its own; the program tells each one's
offset and size, and nothing forbids that two overlap. The second layer's weights, (m, r) or (m, 1, 1, r), have
their rank innermost. XNNPACK also multiplies with transposed weights, (r, m), of which a lower rank is the
beginning of a higher one: as a fully connected layer, which a convolution of width 1 is too, channels innermost.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maestro_edge.errors import ExportError
from maestro_edge.runtimes.elastic import owners
from maestro_edge.runtimes.xnnpack import TRANSPOSED, graph_schema, read_graph, tensors_of, write_graph

__all__ = ["overlap_segments", "store_by_rank"]

_ALIGNMENT = 128
"""Of segments, as ExecuTorch's own serializer places them."""
_SEGMENTS = 4
"""The field of `Program` that lists them (schema/program.fbs)."""
_DIGITS = 12
"""Of a constant's name, 6 bits each."""


class _Matrix(NamedTuple):
    """A node that multiplies with a matrix, (m, r), and the name of that constant."""

    node: Any
    weight: Any
    constant: str


def store_by_rank(content: bytes) -> bytes:
    """The .pte file with those matrices transposed of which one then begins another, or is begun by one.

    Its constants are called by digests of 12 characters, not of 64: every method repeats them.
    """
    from executorch.exir._serialize._named_data_store import NamedDataStore
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary

    file = deserialize_pte_binary(content)
    if file.named_data is None:
        return content
    buffers = file.named_data.buffers
    constants = {name: bytes(buffers[each.buffer_index]) for name, each in file.named_data.pte_data.items()}
    blobs = file.program.backend_delegate_data
    graphs = [read_graph(bytes(blob.data)) for blob in blobs]
    constants |= _transposed(graphs, constants)
    called = {name: _digest(held) for name, held in constants.items()}
    for blob, graph in zip(blobs, graphs, strict=True):
        for constant in graph.constantData:
            if constant.namedKey:
                constant.namedKey = called[constant.namedKey.decode()]
        blob.data = write_graph(graph)
    store = NamedDataStore()
    for name, held in constants.items():
        store.add_named_data(called[name], held, alignment=1)
    file.named_data = store.get_named_data_store_output()
    return bytes(serialize_pte_binary(file, extract_delegate_segments=True, segment_alignment=_ALIGNMENT))


def _digest(content: bytes) -> str:
    """Of the content, as in ExecuTorch's own names: a process that loads several files keeps constants by name."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest())[:_DIGITS].decode()


def _transposed(graphs: Sequence[Any], constants: Mapping[str, bytes]) -> dict[str, bytes]:
    """Change the nodes of the matrices that share more by rank; their new contents."""
    matrices: dict[str, list[_Matrix]] = {}
    for matrix in (matrix for graph in graphs for matrix in _matrices(graph)):
        matrices.setdefault(matrix.constant, []).append(matrix)
    otherwise = {name for graph in graphs for name in _used_otherwise(graph)}
    by_rank = {}
    for name, found in matrices.items():
        (m, r), *others = {(int(each.weight.dims[0]), int(each.weight.dims[-1])) for each in found}
        if not others and name not in otherwise:
            by_rank[name] = np.frombuffer(constants[name], np.float32).reshape(m, r).T.tobytes()
    chains: dict[int, list[str]] = {}
    for name, owner in zip(by_rank, owners(list(by_rank.values())), strict=True):
        chains.setdefault(owner, []).append(name)
    changed = {}
    for chain in chains.values():
        if len({len(by_rank[name]) for name in chain}) > 1:
            changed.update({name: by_rank[name] for name in chain})
    for matrix in (matrix for name in changed for matrix in matrices[name]):
        _transpose(matrix)
    return changed


def _matrices(graph: Any) -> Iterator[_Matrix]:
    """The nodes that multiply with a constant in fp32."""
    schema, tensors = graph_schema(), tensors_of(graph)
    for node in filter(_multiplies, graph.xnodes):
        weight = tensors[node.xnodeUnion.filterId]
        constant = _name(graph, weight)
        if constant and weight.datatype == schema.XNNDatatype.xnn_datatype_fp32:
            yield _Matrix(node, weight, constant)


def _used_otherwise(graph: Any) -> Iterator[str]:
    """The constants that any node has for something else than the matrix to multiply with."""
    tensors = tensors_of(graph)
    for node in graph.xnodes:
        for field, number in vars(node.xnodeUnion).items():
            is_matrix = field == "filterId" and _multiplies(node)
            if field.endswith("Id") and number in tensors and not is_matrix:
                yield from filter(None, [_name(graph, tensors[number])])


def _name(graph: Any, tensor: Any) -> str | None:
    """Of a tensor's content; None where it is computed."""
    key = graph.constantData[tensor.constantBufferIdx].namedKey
    return key.decode() if key else None


def _multiplies(node: Any) -> bool:
    """Whether it is a fully connected layer, or a convolution that is one at every place."""
    kinds, found = graph_schema().XNodeUnion, node.xnodeUnion
    if node.xnodeUnionType == kinds.XNNFullyConnected:
        return bool(found.flags == 0)
    if node.xnodeUnionType != kinds.XNNConv2d:
        return False
    ones = found.kernelHeight, found.kernelWidth, found.subsamplingHeight, found.subsamplingWidth, found.groups
    padding = found.paddingTop, found.paddingRight, found.paddingBottom, found.paddingLeft
    return bool(set(ones) == {1} and set(padding) == {0} and found.flags == 0)


def _transpose(matrix: _Matrix) -> None:
    schema, node, old = graph_schema(), matrix.node, matrix.node.xnodeUnion
    new = schema.XNNFullyConnectedT()
    new.input1Id, new.filterId, new.biasId, new.outputId = old.input1Id, old.filterId, old.biasId, old.outputId
    new.flags = TRANSPOSED
    node.xnodeUnionType, node.xnodeUnion = schema.XNodeUnion.XNNFullyConnected, new
    matrix.weight.dims = np.array([matrix.weight.dims[-1], matrix.weight.dims[0]], np.uint32)
    matrix.weight.numDims = 2


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
