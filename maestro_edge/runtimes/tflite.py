"""One layer as a .tflite file, written straight as a flatbuffer: no converter, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maestro_edge.errors import MissingExtra
from maestro_edge.values import DENSE, LayerSpec, Precision, Rank

__all__ = ["libraries", "weight_shapes", "write_layer"]

_STEP = 1 / 16
"""Between two int8 activations of a probe: they reach from -8 to 8, as random inputs do."""


def write_layer(spec: LayerSpec, rank: Rank, precision: Precision = "fp32") -> bytes:
    """The layer at `rank` with random weights, NHWC in and out, signature `serving_default`.

    A conv1d is the convolution of an image one wide, (N, L, 1, C); an embedding takes 32-bit ids. In int8 the
    operators have what the quantizer gives them: weights with one scale a channel, or one in all where a linear
    layer is dynamic; static ones compute between a QUANTIZE and a DEQUANTIZE.

    Raises:
        MissingExtra: ai-edge-litert is not installed.
    """
    if spec.kind == "conv1d":
        spec = spec.model_copy(update={"kind": "conv2d", "input_size": (*spec.input_size, 1)})
    graph = _Graph(precision, seed=0)
    x = (
        graph.ids(spec)
        if spec.kind == "embedding"
        else graph.floats((spec.batch, *spec.input_size, spec.in_channels))
    )
    y = x
    for part in spec.parts(rank):
        z, y = y, graph.layer(y, part)
    if spec.factors == "gauge" and rank != DENSE:
        y = graph.side_by_side(z, y, relu=spec.activation == "relu")
    return graph.finish(x, graph.dequantized(y))


def weight_shapes(path: Path) -> list[tuple[int, ...]]:
    """Shapes of the weights of every convolution and fully connected operator of a file, in execution order.

    Raises:
        MissingExtra: ai-edge-litert is not installed.
    """
    schema, _ = libraries()
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    builtin = schema.BuiltinOperator
    wanted = {builtin.CONV_2D, builtin.DEPTHWISE_CONV_2D, builtin.FULLY_CONNECTED}
    graph, shapes = model.Subgraphs(0), []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        if max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) in wanted:
            shape = tuple(map(int, graph.Tensors(operator.Inputs(1)).ShapeAsNumpy()))
            depthwise = max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) == builtin.DEPTHWISE_CONV_2D
            shapes.append((shape[3], shape[1], shape[2], 1) if depthwise else shape)
    return shapes


def libraries() -> tuple[Any, Any]:
    """The schema of .tflite files and the flatbuffers package.

    Raises:
        MissingExtra: ai-edge-litert is not installed.
    """
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise MissingExtra("ai-edge-litert", "litert") from error
    return schema, flatbuffers


class _Graph:
    """A .tflite model with one subgraph, built operator by operator."""

    def __init__(self, precision: Precision, seed: int) -> None:
        schema, flatbuffers = libraries()
        self.schema, self.builder, self.precision = schema, flatbuffers.Builder, precision
        self.random = np.random.default_rng(seed)
        self.graph = schema.SubGraphT()
        self.graph.name, self.graph.tensors, self.graph.operators = "main", [], []
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, "maestro_edge probe"
        self.model.operatorCodes, self.model.subgraphs = [], [self.graph]
        self.model.buffers = [schema.BufferT()]  # buffer 0 is empty by convention
        self.codes: dict[int, int] = {}

    def ids(self, spec: LayerSpec) -> int:
        return self.floats((spec.batch, *spec.input_size), self.schema.TensorType.INT32)

    def floats(self, shape: tuple[int, ...], kind: int = 0) -> int:
        """A tensor whose values are as they are: FLOAT32, or another type."""
        tensor = self.schema.TensorT()
        tensor.shape, tensor.hasRank = np.array(shape, np.int32), True
        tensor.name = f"t{len(self.graph.tensors)}"
        tensor.type, tensor.buffer = kind, 0
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def layer(self, x: int, part: LayerSpec) -> int:
        if part.kind == "embedding":
            table = self.constant(self.normal(part.in_channels, part.out_channels))
            output = self.floats((part.batch, *part.input_size, part.out_channels))
            return self.operator("GATHER", [table, x], output, self.schema.GatherOptionsT())
        relu, x = part.activation == "relu", self.quantized(x)
        if part.kind == "linear":
            return self.fully_connected(x, part.out_channels, part.in_channels, relu=relu)
        return self.convolution(x, part, part.out_channels, relu=relu)

    def side_by_side(self, z: int, others: int, *, relu: bool) -> int:
        """XNNPACK has no concatenation with an activation: a ReLU is an operator of its own."""
        options = self.schema.ConcatenationOptionsT()
        *sizes, channels = self.shape(z)
        options.axis = len(sizes)
        shape = (*sizes, channels + self.shape(others)[-1])
        y = self.operator("CONCATENATION", [z, others], self.tensor(shape), options)
        return self.operator("RELU", [y], self.tensor(shape), None) if relu else y

    def tensor(self, shape: tuple[int, ...]) -> int:
        """What an operator leaves: int8 in a static graph, else floats."""
        tensor = self.floats(shape)
        if self.precision == "int8-static":
            self._scale(tensor, self.schema.TensorType.INT8, np.array([_STEP]))
        return tensor

    def constant(self, data: npt.NDArray[Any]) -> int:
        types = {"float32": "FLOAT32", "float16": "FLOAT16", "int32": "INT32", "int8": "INT8"}
        tensor = self.floats(data.shape, getattr(self.schema.TensorType, types[data.dtype.name]))
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        self.graph.tensors[tensor].buffer = len(self.model.buffers) - 1
        return tensor

    def _scale(self, tensor: int, kind: int, scales: npt.NDArray[Any], axis: int = 0) -> None:
        parameters = self.schema.QuantizationParametersT()
        parameters.scale = scales.astype(np.float32)
        parameters.zeroPoint = np.zeros(len(scales), np.int64)
        parameters.quantizedDimension = axis
        self.graph.tensors[tensor].type = kind
        self.graph.tensors[tensor].quantization = parameters

    def quantized(self, x: int) -> int:
        floats = self.graph.tensors[x].type == self.schema.TensorType.FLOAT32
        if self.precision != "int8-static" or not floats:
            return x
        return self.operator("QUANTIZE", [x], self.tensor(self.shape(x)), self.schema.QuantizeOptionsT())

    def dequantized(self, x: int) -> int:
        if self.graph.tensors[x].type != self.schema.TensorType.INT8:
            return x
        return self.operator("DEQUANTIZE", [x], self.floats(self.shape(x)), self.schema.DequantizeOptionsT())

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(size) for size in self.graph.tensors[tensor].shape)

    def normal(self, *shape: int) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = (self.random.standard_normal(shape) * 0.05).astype(np.float32)
        return values

    def weights(self, *shape: int, axis: int | None = 0) -> int:
        """Floats, halves made floats, or int8 with one scale for each channel along `axis`; None: one for all."""
        values = self.normal(*shape)
        if self.precision == "fp32":
            return self.constant(values)
        if self.precision == "fp16":
            halves = self.constant(values.astype(np.float16))
            return self.operator("DEQUANTIZE", [halves], self.floats(shape), self.schema.DequantizeOptionsT())
        # scales of the weights' own: with equal ones tflite-runtime 2.14 leaves dynamic convolutions out
        others = tuple(each for each in range(len(shape)) if each != axis)
        steps = np.abs(values).max(axis=others, keepdims=True) / 127
        tensor = self.constant((values / steps).round().astype(np.int8))
        self._scale(tensor, self.schema.TensorType.INT8, steps.flatten(), axis or 0)
        return tensor

    def bias(self, channels: int, weight: int) -> int:
        """Floats; in a static graph, int32 in steps of the products."""
        values = self.normal(channels)
        if self.precision != "int8-static":
            return self.constant(values)
        steps = _STEP * self.graph.tensors[weight].quantization.scale
        tensor = self.constant((values / steps).round().astype(np.int32))
        self._scale(tensor, self.schema.TensorType.INT32, steps)
        return tensor

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
        if options is not None:
            operator.builtinOptions = options
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
        self.graph.operators.append(operator)
        return output

    def fully_connected(self, x: int, channels: int, fan_in: int, *, relu: bool) -> int:
        options = self.schema.FullyConnectedOptionsT()
        options.keepNumDims, options.fusedActivationFunction = True, int(relu)
        # dynamic with one scale a channel, tflite-runtime 2.14 computes something else
        axis = None if self.precision == "int8-dynamic" else 0
        weight = self.weights(channels, fan_in, axis=axis)
        inputs = [x, weight, self.bias(channels, weight)]
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
            shape = (1, *spec.kernel, channels)
            # XNNPACK has no dynamic kernel for these: the quantizer leaves them floats
            dynamic = self.precision == "int8-dynamic"
            weight = self.constant(self.normal(*shape)) if dynamic else self.weights(*shape, axis=3)
        else:
            weight = self.weights(channels, *spec.kernel, spec.in_channels // spec.groups)
        output = self.tensor((spec.batch, *spec.output_size, channels))
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        return self.operator(kind, [x, weight, self.bias(channels, weight)], output, options)

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
        inputs = [x, self.constant(zeros)]
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
