"""Elastic .tflite files: signatures whose weights overlap.

A buffer may lie behind the flatbuffer, at an offset of its own, and nothing forbids that two overlap: the first
layer of a pair at a low rank is the beginning of that at a higher one. The second layer's weights, (m, 1, 1, r),
have their rank innermost. Stored by rank, (r, m), a lower rank is a beginning too. Such a tensor is a "sparse" one
without zeros whose dimensions are traversed in another order: DENSIFY turns it into (m, 1, 1, r), and XNNPACK does
so once, when it loads the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from maestro_edge.errors import ExportError
from maestro_edge.runtimes.elastic import owners
from maestro_edge.runtimes.tflite import libraries

__all__ = ["Product", "overlap_buffers"]

_SMALL = 256
"""Bytes of a buffer that is left where it is: it would gain less than its alignment costs."""
_ALIGNMENT = 64
_UNKNOWN = 1 << 40
"""Stands for where the buffers begin, which the size of the flatbuffer decides."""


class Product(NamedTuple):
    """What the outputs of a layer are multiplied by, (m,); the layer is known by its weight, (m, ...)."""

    weight: npt.NDArray[np.float32]
    ratio: npt.NDArray[np.float32]


def overlap_buffers(content: bytes, products: Mapping[str, Sequence[Product]]) -> bytes:
    """The .tflite file with the products put in by signature, and every buffer that begins another in its place.

    Raises:
        ExportError: a layer that is to be multiplied is not in its signature.
        MissingExtra: ai-edge-litert is not installed.
    """
    model = _Model(content)
    for signature, wanted in products.items():
        for product in wanted:
            model.multiply(signature, product)
    model.transpose_weights()
    model.forget_names()
    return model.packed()


class _Model:
    """A .tflite model that is changed in place."""

    def __init__(self, content: bytes) -> None:
        self.schema, _ = libraries()
        self.model = self.schema.ModelT.InitFromObj(self.schema.Model.GetRootAs(content, 0))
        self.builtin = self.schema.BuiltinOperator

    def kind(self, operator: Any) -> int:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return int(max(code.builtinCode, code.deprecatedBuiltinCode))

    def constant(self, tensor: Any) -> bytes:
        """A tensor's content; empty where it is computed."""
        return self.content(tensor.buffer)

    def content(self, buffer: int) -> bytes:
        data = self.model.buffers[buffer].data
        return b"" if data is None else np.asarray(data, np.uint8).tobytes()

    def layers(self, graph: Any, *kinds: int) -> list[tuple[int, Any, Any]]:
        """Operators with float weights: position, operator and weight."""
        found = []
        for at, operator in enumerate(graph.operators):
            if self.kind(operator) in kinds:
                weight = graph.tensors[operator.inputs[1]]
                if weight.type == self.schema.TensorType.FLOAT32 and self.constant(weight):
                    found.append((at, operator, weight))
        return found

    def multiply(self, signature: str, product: Product) -> None:
        """Put a product behind the layer with this weight; it takes over an activation that is not linear."""
        (entry,) = (each for each in self.model.signatureDefs if each.signatureKey.decode() == signature)
        graph = self.model.subgraphs[entry.subgraphIndex]
        wanted = {_laid_out(product.weight, first=0), _laid_out(product.weight, first=1)}
        kinds = self.builtin.CONV_2D, self.builtin.DEPTHWISE_CONV_2D, self.builtin.FULLY_CONNECTED
        found = [item for item in self.layers(graph, *kinds) if self.constant(item[2]) in wanted]
        if len(found) != 1 or graph.tensors[found[0][1].outputs[0]].shape[-1] != len(product.ratio):
            raise ExportError(
                f"entry {signature} has no layer of its own for a weight {product.weight.shape} with BatchNorm: "
                "export the plans apart"
            )
        ((at, layer, _),) = found
        y = int(layer.outputs[0])
        options, fused = self.schema.MulOptionsT(), self.schema.ActivationFunctionType
        if layer.builtinOptions.fusedActivationFunction not in (fused.NONE, fused.RELU):
            options.fusedActivationFunction = layer.builtinOptions.fusedActivationFunction
            layer.builtinOptions.fusedActivationFunction = fused.NONE
        scaled = self.tensor(graph, graph.tensors[y].shape)
        self.redirect(graph, entry, y, scaled)
        factor = self.tensor(graph, np.array([len(product.ratio)], np.int32), product.ratio.tobytes())
        self.insert(graph, at + 1, "MUL", [y, factor], scaled, options)

    def redirect(self, graph: Any, entry: Any, old: int, new: int) -> None:
        for operator in graph.operators:
            operator.inputs = np.where(np.asarray(operator.inputs) == old, new, operator.inputs).astype(np.int32)
        graph.outputs = np.where(np.asarray(graph.outputs) == old, new, graph.outputs).astype(np.int32)
        for output in entry.outputs:
            output.tensorIndex = new if output.tensorIndex == old else output.tensorIndex

    def tensor(self, graph: Any, shape: Any, content: bytes = b"") -> int:
        made = self.schema.TensorT()
        made.shape, made.hasRank, made.name = np.array(shape, np.int32), True, f"t{len(graph.tensors)}"
        made.type, made.buffer = self.schema.TensorType.FLOAT32, self.buffer(content) if content else 0
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def buffer(self, content: bytes) -> int:
        made = self.schema.BufferT()
        made.data = np.frombuffer(content, np.uint8)
        self.model.buffers.append(made)
        return len(self.model.buffers) - 1

    def insert(self, graph: Any, at: int, kind: str, inputs: Sequence[int], output: int, options: Any) -> None:
        code = getattr(self.builtin, kind)
        known = [max(each.builtinCode, each.deprecatedBuiltinCode) for each in self.model.operatorCodes]
        if code not in known:
            entry = self.schema.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), 1
            self.model.operatorCodes.append(entry)
            known.append(code)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = known.index(code)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        graph.operators.insert(at, operator)

    def transpose_weights(self) -> None:
        """Store by rank what then is the beginning of another, and what begins with it."""
        thin: dict[int, bytes] = {}
        for graph in self.model.subgraphs:
            for _, _, weight in self.layers(graph, self.builtin.CONV_2D, self.builtin.FULLY_CONNECTED):
                if np.prod(weight.shape) == weight.shape[0] * weight.shape[-1]:
                    matrix = np.frombuffer(self.constant(weight), np.float32).reshape(weight.shape[0], -1)
                    thin[weight.buffer] = np.ascontiguousarray(matrix.T).tobytes()
        chains: dict[int, list[int]] = {}
        keys = list(thin)
        for index, owner in enumerate(owners(list(thin.values()))):
            chains.setdefault(owner, []).append(keys[index])
        for chain in chains.values():
            if len({len(thin[key]) for key in chain}) > 1:
                for key in chain:
                    self.store_by_rank(key, thin[key])

    def store_by_rank(self, buffer: int, content: bytes) -> None:
        self.model.buffers[buffer].data = np.frombuffer(content, np.uint8)
        for graph in self.model.subgraphs:
            for index, tensor in enumerate(list(graph.tensors)):
                if tensor.buffer == buffer:
                    tensor.sparsity = self.traversed(tensor.shape)
                    dense = self.tensor(graph, tensor.shape)
                    users = [at for at, each in enumerate(graph.operators) if index in each.inputs]
                    for at in users:
                        inputs = np.asarray(graph.operators[at].inputs)
                        graph.operators[at].inputs = np.where(inputs == index, dense, inputs).astype(np.int32)
                    self.insert(graph, users[0], "DENSIFY", [index], dense, self.schema.DensifyOptionsT())

    def traversed(self, shape: Any) -> Any:
        """The last dimension first, the first one last; all of them dense."""
        order = [len(shape) - 1, *range(1, len(shape) - 1), 0]
        sparsity = self.schema.SparsityParametersT()
        sparsity.traversalOrder, sparsity.dimMetadata = np.array(order, np.int32), []
        for dimension in order:
            made = self.schema.DimensionMetadataT()
            made.format, made.denseSize = self.schema.DimensionType.DENSE, int(shape[dimension])
            sparsity.dimMetadata.append(made)
        return sparsity

    def forget_names(self) -> None:
        """Leave only inputs and outputs their names; others are called after all modules that they are in."""
        for graph in self.model.subgraphs:
            named = {*map(int, graph.inputs), *map(int, graph.outputs)}
            for index, tensor in enumerate(graph.tensors):
                tensor.name = tensor.name if index in named else b""

    def packed(self) -> bytes:
        """The file: what is large lies behind the flatbuffer, one buffer over another where they can."""
        used = sorted({tensor.buffer for graph in self.model.subgraphs for tensor in graph.tensors})
        contents = {index: self.content(index) for index in used}
        large = {index: content for index, content in contents.items() if len(content) > _SMALL}
        keys, behind, places = list(large), bytearray(), dict[int, int]()
        found = owners(list(large.values()))
        for owner in dict.fromkeys(found):
            behind += bytes(-len(behind) % _ALIGNMENT)
            places[owner] = len(behind)
            behind += large[keys[owner]]
        for key, owner in zip(keys, found, strict=True):
            buffer = self.model.buffers[key]
            buffer.data, buffer.offset, buffer.size = None, _UNKNOWN + places[owner], len(large[key])
        base = -(-len(self.flatbuffer()) // _ALIGNMENT) * _ALIGNMENT
        for key in keys:  # 64 bits either way, and equal where they were: the flatbuffer keeps its size
            self.model.buffers[key].offset += base - _UNKNOWN
        return self.flatbuffer().ljust(base, b"\0") + bytes(behind)

    def flatbuffer(self) -> bytes:
        from maestro_edge.runtimes.flatbuffer import pack

        return pack(self.model, b"TFL3")


def _laid_out(weight: npt.NDArray[np.float32], *, first: int) -> bytes:
    """A weight (m, n, ...) as LiteRT stores it: (m, ..., n), or (n, ..., m) of a depthwise convolution."""
    order = [first, *range(2, weight.ndim), 1 - first]
    return np.ascontiguousarray(weight.transpose(order)).tobytes()
