"""weights_of(): what the kernels of an ExecuTorch file multiply with, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from maestro_edge.runtimes.xnnpack import TRANSPOSED, graph_schema, read_graph, tensors_of

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
    graph, kinds = read_graph(blob), graph_schema().XNodeUnion
    dims = {number: tuple(map(int, tensor.dims)) for number, tensor in tensors_of(graph).items()}
    for node in graph.xnodes:
        kind, found = node.xnodeUnionType, node.xnodeUnion
        if kind == kinds.XNNFullyConnected:
            shape = dims[found.filterId]
            yield shape[::-1] if found.flags & TRANSPOSED else shape
        elif kind == kinds.XNNConv2d:
            yield dims[found.filterId]
        elif kind == kinds.XNNDepthwiseConv2d:
            _, *kernel, channels = dims[found.filterId]
            yield channels, *kernel, 1
