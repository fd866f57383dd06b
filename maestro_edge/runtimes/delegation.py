"""How much of an exported graph the accelerated backend takes: the rest runs on slower kernels, in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from maestro_edge.errors import ExportError, MissingExtra
from maestro_edge.runtimes.conversion import first_line
from maestro_edge.values import Delegation

__all__ = ["of_edge_program", "of_tflite"]

_FUSED: Final = "quantized_decomposed"
"""The namespace of what a backend makes part of the operators beside it."""


def of_edge_program(module: Any, backend: str) -> Delegation:
    """What ExecuTorch's `backend` took of a lowered program's graph module.

    Operators are those of the edge dialect, before the backend fuses them; conversions to and from int8 count
    where they are left outside.
    """
    taken, fallbacks = 0, list(_operators(module.graph))
    for node in module.graph.nodes:
        lowered: Any = getattr(module, str(node.target), None) if node.op == "get_attr" else None
        if hasattr(lowered, "original_module"):
            inside = _operators(lowered.original_module.graph_module.graph)
            taken += sum(not name.startswith(_FUSED) for name in inside)
    names = [name.rpartition("::")[2] for name in fallbacks]
    return Delegation(
        backend=backend, taken=taken, operators=max(1, taken + len(names)), fallbacks=tuple(dict.fromkeys(names))
    )


def _operators(graph: Any) -> Iterator[str]:
    """ "aten::layer_norm" of every call of an operator; `getitem` and the calls of backends are none."""
    for node in graph.nodes:
        name = getattr(node.target, "_name", "") if node.op == "call_function" else ""
        namespace, found, operator = str(name).partition("::")
        if found:
            short = operator.partition(".")[0].removeprefix("native_").removeprefix("_").removesuffix("_copy")
            yield f"{namespace}::{short}"


def of_tflite(content: bytes) -> Delegation:
    """What XNNPACK takes of a .tflite file in this machine's LiteRT; another version may take less.

    Raises:
        ExportError: the file cannot be loaded.
        MissingExtra: ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingExtra("ai-edge-litert", "litert") from error
    try:
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()  # this is when operators are delegated
        nodes = interpreter._get_ops_details()
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"LiteRT cannot load the file ({first_line(error)}): export it again") from error
    outputs = [int(each["index"]) for each in interpreter.get_output_details()]
    left = _executed(nodes, outputs)
    operators = sum(node["op_name"] != _DELEGATE for node in nodes)
    names = [name for name in left if name != _DELEGATE]
    return Delegation(
        backend="XNNPACK",
        taken=operators - len(names),
        operators=operators,
        fallbacks=tuple(dict.fromkeys(names)),
    )


_DELEGATE: Final = "DELEGATE"


def _executed(nodes: list[dict[str, Any]], outputs: list[int]) -> list[str]:
    """Names of the nodes that run, in their order: the list keeps those that a delegate stands for.

    What makes a tensor is the last node that has it as an output: delegates come behind all others.
    """
    producer = {int(tensor): node for node in nodes for tensor in node["outputs"]}
    found: dict[int, str] = {}
    wanted = list(outputs)
    while wanted:
        node = producer.get(wanted.pop())
        if node is not None and node["index"] not in found:
            found[node["index"]] = node["op_name"]
            wanted += [int(tensor) for tensor in node["inputs"]]
    return [found[index] for index in sorted(found)]
