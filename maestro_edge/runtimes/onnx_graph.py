"""ONNX graphs: what becomes of an exported one, and one-layer graphs written straight."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from maestro_edge.errors import MissingExtra
from maestro_edge.runtimes.probe import probe_input_shape
from maestro_edge.values import DENSE, LayerSpec, Rank

__all__ = [
    "INPUT",
    "OPSET",
    "OUTPUT",
    "halved",
    "label_layers",
    "layer_of",
    "load_onnx",
    "tidied",
    "write_layer",
]

INPUT: Final = "input"
OUTPUT: Final = "output"
OPSET: Final = 18
"""The oldest that PyTorch writes: boards and JetPack lag behind."""

_LAYERS: Final = {"Conv", "ConvInteger", "Gemm", "MatMul", "MatMulInteger"}
_ACTIVATIONS: Final = {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh"}
"""What ONNX Runtime computes inside the kernel of a convolution."""
_LABEL: Final = "maestro_layer_"


def tidied(content: bytes) -> bytes:
    """The checked graph, without what PyTorch notes at each node: stack traces, with paths of this machine.

    Raises:
        onnx.checker.ValidationError: it is not a valid graph.
    """
    onnx = load_onnx()
    model = onnx.load_from_string(content)
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.ClearField("metadata_props")
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    return _checked(model)


def _checked(model: Any) -> bytes:
    load_onnx().checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def halved(content: bytes) -> bytes:
    """The graph with its weights in halves, each widened by a Cast that is folded away when the file is loaded."""
    onnx = load_onnx()
    model = onnx.load_from_string(content)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name, largest = tensor.name, np.finfo(np.float16).max
        halves = onnx.numpy_helper.to_array(tensor).clip(-largest, largest).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(halves, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return _checked(model)


def label_layers(content: bytes) -> tuple[bytes, list[tuple[int, ...]]]:
    """A copy of a file for measuring whose kernels tell their layers, and the shapes of the layers' weights.

    ONNX Runtime names a kernel after the node or after a tensor that it writes, whatever it fuses: `layer_of`
    finds the layer's index in that name. Layers come in the order of the file, shapes as in `Operator.weights`.
    """
    onnx = load_onnx()
    model = onnx.load_from_string(content)
    shapes = _constant_shapes(model.graph)
    readers = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    names: dict[str, str] = {}
    found: list[tuple[int, ...]] = []
    for node in model.graph.node:
        if node.op_type not in _LAYERS or node.input[1] not in shapes:
            continue  # a product of two activations is no layer
        node.name = f"{_LABEL}{len(found)}_"
        names[node.output[0]] = f"{node.name}out"
        following = readers[node.output[0]]
        if len(following) == 1 and following[0].op_type in _ACTIVATIONS:
            names[following[0].output[0]] = f"{node.name}active"
        found.append(_output_first(node, shapes[node.input[1]]))
    _rename(model.graph, names)
    return _checked(model), found


def layer_of(kernel: str) -> int | None:
    """The index of the layer that a kernel of a labelled file belongs to."""
    _, label, rest = kernel.partition(_LABEL)
    return int(rest.partition("_")[0]) if label else None


def _constant_shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by the name under which a layer reads them, which may be that of a Cast's output."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Cast", "DequantizeLinear", "Transpose") and node.input[0] in shapes:
            shape = shapes[node.input[0]]
            shapes[node.output[0]] = shape[::-1] if node.op_type == "Transpose" else shape
    return shapes


def _output_first(node: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    if node.op_type.startswith("Conv"):
        out, inner, *kernel = shape
        return (out, *kernel, inner)
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return shape if transposed else shape[::-1]


def _rename(graph: Any, names: dict[str, str]) -> None:
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [names.get(name, name) for name in ends]
    for item in (*graph.output, *graph.value_info):
        item.name = names.get(item.name, item.name)


def write_layer(spec: LayerSpec, rank: Rank) -> bytes:
    """The layer at `rank` with random weights, channels first, as PyTorch's exporter writes it.

    Raises:
        MissingExtra: onnx is not installed.
    """
    onnx = load_onnx()
    graph = _Layer(onnx)
    kind = onnx.TensorProto.INT64 if spec.kind == "embedding" else onnx.TensorProto.FLOAT
    convolves = spec.kind not in ("linear", "embedding")
    x = probe_input_shape(spec)
    y = (spec.out_channels, *spec.output_size) if convolves else (*spec.output_size, spec.out_channels)
    parts = spec.parts(rank)
    gauge = spec.factors == "gauge" and rank != DENSE
    tensors = [INPUT]
    for index, part in enumerate(parts):
        tensors.append(graph.layer(tensors[-1], part, bias=gauge or index == len(parts) - 1))
    if gauge:
        tensors.append(graph.node("Concat", tensors[1:], axis=1 if convolves else -1))
    if spec.activation == "relu":
        tensors.append(graph.node("Relu", tensors[-1:]))
    graph.nodes[-1].output[0] = OUTPUT
    made = onnx.helper.make_graph(
        graph.nodes,
        "probe",
        [onnx.helper.make_tensor_value_info(INPUT, kind, x)],
        [onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, (spec.batch, *y))],
        graph.weights,
    )
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    return tidied(model.SerializeToString())


class _Layer:
    """The nodes and weights of a graph that is being written."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.random = onnx, np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], name=f"n{output}", **attributes))
        return output

    def normal(self, *shape: int) -> str:
        values: npt.NDArray[np.float32] = (self.random.standard_normal(shape) * 0.05).astype(np.float32)
        self.weights.append(self.onnx.numpy_helper.from_array(values, f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def layer(self, x: str, part: LayerSpec, *, bias: bool) -> str:
        out, inner = part.out_channels, part.in_channels
        if part.kind == "embedding":
            return self.node("Gather", [self.normal(inner, out), x])
        if part.kind != "linear":
            edges = _edges(part)
            inputs = [x, self.normal(out, inner // part.groups, *edges["kernel_shape"])]
            return self.node("Conv", [*inputs, *([self.normal(out)] if bias else [])], **edges)
        if not part.input_size:
            inputs = [x, self.normal(out, inner)]
            return self.node("Gemm", [*inputs, *([self.normal(out)] if bias else [])], transB=1)
        product = self.node("MatMul", [x, self.normal(inner, out)])
        return self.node("Add", [product, self.normal(out)]) if bias else product


def _edges(part: LayerSpec) -> dict[str, Any]:
    kernel = part.kernel[:1] if part.kind == "conv1d" else part.kernel
    count = len(kernel)
    return {
        "kernel_shape": kernel,
        "strides": part.stride[:count],
        "dilations": part.dilation[:count],
        "pads": part.padding[:count] * 2,
        "group": part.groups,
    }


def load_onnx() -> Any:
    """The onnx package.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", "onnx") from error
    return onnx
