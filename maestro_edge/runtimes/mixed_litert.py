"""Which operators of a .tflite file compute which modules.

The converter calls constants after the classes of the modules that they come from. Classes repeat, and of a
module's name it keeps the last part only: so each layer that is looked for gets a class of its own.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from maestro_edge.errors import ExportError
from maestro_edge.runtimes.tflite import libraries

__all__ = ["mark", "outputs_of"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def mark(model: nn.Module, names: Collection[str]) -> dict[str, str]:
    """Give each Linear and convolution of or within the modules `names` of `model` a class that its weights will
    be called after; returns the classes' names by that of the layer.

    Raises:
        ExportError: a module is not there, or has no such layer.
    """
    marks: dict[str, str] = {}
    modules = dict(model.named_modules())
    for name in names:
        inside = (each for each in modules if each == name or each.startswith(f"{name}."))
        layers = [each for each in inside if isinstance(modules[each], _LAYERS)]
        if not layers:
            raise ExportError(f"there is no linear layer or convolution {name!r} to be in int8: name another")
        for each in layers:
            kind, marks[each] = type(modules[each]), f"Int8Layer{len(marks)}Marked"
            modules[each].__class__ = type(marks[each], (kind,), {})
    return marks


def outputs_of(content: bytes, marks: dict[str, str]) -> list[str]:
    """What each marked layer's operator calls its output in the .tflite file.

    Raises:
        ExportError: a layer has not become one operator of its own, of a kind that int8 has a kernel for.
        MissingExtra: ai-edge-litert is not installed.
    """
    schema, _ = libraries()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = model.subgraphs
    kinds = {schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED}
    named = [tensor.name.decode() for tensor in graph.tensors]
    outputs = [named[index] for operator in graph.operators for index in operator.outputs]
    found = []
    for layer, mark in marks.items():
        own = [
            named[operator.outputs[0]]
            for operator in graph.operators
            if model.operatorCodes[operator.opcodeIndex].builtinCode in kinds and mark in named[operator.inputs[1]]
        ]
        if len(own) != 1 or outputs.count(own[0]) != 1 or own[0] in found:
            raise ExportError(
                f"layer {layer!r} is {len(own)} operators that may be in int8, not one: leave it in fp32"
            )
        found += own
    return found
