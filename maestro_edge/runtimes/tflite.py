"""One layer as a .tflite file, written straight as a flatbuffer: no converter, no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from maestro_edge.errors import MissingExtra
from maestro_edge.values import LayerSpec, Rank

__all__ = ["write_layer"]

Weights = npt.NDArray[np.float32]


def write_layer(spec: LayerSpec, rank: Rank) -> bytes:
    """The layer at `rank` with random weights, NHWC in and out, signature `serving_default`.

    A conv1d is the convolution of an image one wide, (N, L, 1, C); an embedding takes 32-bit ids.

    Raises:
        MissingExtra: ai-edge-litert is not installed.
    """
    if spec.kind == "conv1d":
        spec = spec.model_copy(update={"kind": "conv2d", "input_size": (*spec.input_size, 1)})
    graph = _Graph(seed=0)
    x = (
        graph.ids(spec)
        if spec.kind == "embedding"
        else graph.tensor((spec.batch, *spec.input_size, spec.in_channels))
    )
    y = x
    for part in spec.parts(rank):
        y = graph.layer(y, part)
    return graph.finish(x, y)


class _Graph:
    """A .tflite model with one subgraph, built operator by operator."""

    def __init__(self, seed: int) -> None:
        try:
            import flatbuffers
            from ai_edge_litert import schema_py_generated as schema
        except ImportError as error:
            raise MissingExtra("ai-edge-litert", "litert") from error
        self.schema: Any = schema
        self.builder: Any = flatbuffers.Builder
        self.random = np.random.default_rng(seed)
        self.graph = schema.SubGraphT()
        self.graph.name, self.graph.tensors, self.graph.operators = "main", [], []
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, "maestro_edge probe"
        self.model.operatorCodes, self.model.subgraphs = [], [self.graph]
        self.model.buffers = [schema.BufferT()]  # buffer 0 is empty by convention
        self.codes: dict[int, int] = {}

    def ids(self, spec: LayerSpec) -> int:
        tensor = self.tensor((spec.batch, *spec.input_size))
        self.graph.tensors[tensor].type = self.schema.TensorType.INT32
        return tensor

    def layer(self, x: int, part: LayerSpec) -> int:
        if part.kind == "embedding":
            table = self.weights(part.in_channels, part.out_channels)
            output = self.tensor((part.batch, *part.input_size, part.out_channels))
            return self.operator("GATHER", [table, x], output, self.schema.GatherOptionsT())
        relu = part.activation == "relu"
        if part.kind == "linear":
            return self.fully_connected(x, part.out_channels, part.in_channels, relu=relu)
        return self.convolution(x, part, part.out_channels, relu=relu)

    def tensor(self, shape: tuple[int, ...], data: npt.NDArray[Any] | None = None) -> int:
        tensor = self.schema.TensorT()
        tensor.shape, tensor.hasRank = np.array(shape, np.int32), True
        tensor.name = f"t{len(self.graph.tensors)}"
        integers = data is not None and data.dtype == np.int32
        tensor.type = self.schema.TensorType.INT32 if integers else self.schema.TensorType.FLOAT32
        tensor.buffer = 0
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(size) for size in self.graph.tensors[tensor].shape)

    def weights(self, *shape: int) -> int:
        values: Weights = (self.random.standard_normal(shape) * 0.05).astype(np.float32)
        return self.tensor(shape, values)

    def operator(self, kind: str, inputs: list[int], output: int, options: Any) -> int:
        code = getattr(self.schema.BuiltinOperator, kind)
        if code not in self.codes:
            entry = self.schema.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), 1
            self.codes[code] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(entry)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.codes[code]
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.graph.operators.append(operator)
        return output

    def fully_connected(self, x: int, channels: int, fan_in: int, *, relu: bool) -> int:
        options = self.schema.FullyConnectedOptionsT()
        options.keepNumDims, options.fusedActivationFunction = True, int(relu)
        inputs = [x, self.weights(channels, fan_in), self.weights(channels)]
        return self.operator("FULLY_CONNECTED", inputs, self.tensor((*self.shape(x)[:-1], channels)), options)

    def convolution(self, x: int, spec: LayerSpec, channels: int, *, relu: bool) -> int:
        depthwise = spec.groups > 1 and spec.groups == spec.in_channels
        options = (self.schema.DepthwiseConv2DOptionsT if depthwise else self.schema.Conv2DOptionsT)()
        options.strideH, options.strideW = spec.stride
        options.dilationHFactor, options.dilationWFactor = spec.dilation
        options.fusedActivationFunction = int(relu)
        x, options.padding = self._pad(x, spec)
        if depthwise:
            options.depthMultiplier = channels // spec.groups
            weight = self.weights(1, *spec.kernel, channels)
        else:
            weight = self.weights(channels, *spec.kernel, spec.in_channels // spec.groups)
        output = self.tensor((spec.batch, *spec.output_size, channels))
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        return self.operator(kind, [x, weight, self.weights(channels)], output, options)

    def _pad(self, x: int, spec: LayerSpec) -> tuple[int, int]:
        """The padding attribute, after an operator of its own where torch's zeros are not TFLite's SAME."""
        same = tuple(d * (k - 1) // 2 for k, d in zip(spec.kernel, spec.dilation, strict=True))
        if spec.padding == (0, 0):
            return x, self.schema.Padding.VALID
        if spec.stride == (1, 1) and spec.padding == same:
            return x, self.schema.Padding.SAME
        (rows, columns), (n, height, width, channels) = spec.padding, self.shape(x)
        zeros = np.array([[0, 0], [rows, rows], [columns, columns], [0, 0]], np.int32)
        padded = self.tensor((n, height + 2 * rows, width + 2 * columns, channels))
        inputs = [x, self.tensor((4, 2), zeros)]
        return self.operator("PAD", inputs, padded, self.schema.PadOptionsT()), self.schema.Padding.VALID

    def finish(self, x: int, y: int) -> bytes:
        self.graph.inputs, self.graph.outputs = np.array([x], np.int32), np.array([y], np.int32)
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = [self._named("x", x)], [self._named("y", y)]
        self.model.signatureDefs = [signature]
        builder = self.builder(1 << 16)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _named(self, name: str, tensor: int) -> Any:
        entry = self.schema.TensorMapT()
        entry.name, entry.tensorIndex = name, tensor
        return entry
