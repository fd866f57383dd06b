"""ExecuTorch: .pte files for XNNPACK, which runs and is timed here, and for backends of other hardware."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError, ExportError, MissingExtra
from maestro_edge.runtimes.attention import plain_attention
from maestro_edge.runtimes.conversion import (
    calibration_inputs,
    converting,
    export_error,
    exported_program,
    refuse_precision,
)
from maestro_edge.runtimes.delegation import of_edge_program
from maestro_edge.runtimes.elastic_executorch import overlap_segments, store_by_rank
from maestro_edge.runtimes.gate import digest
from maestro_edge.runtimes.jobs import FILES, python_versions, version_on
from maestro_edge.runtimes.measuring import (
    batched,
    is_disturbed,
    kernel_kind,
    run_alone,
    run_ops,
    run_predict,
    run_time,
)
from maestro_edge.runtimes.mil import quiet_coremltools
from maestro_edge.runtimes.native import build
from maestro_edge.runtimes.norms import fold_norms
from maestro_edge.runtimes.probe import probe_module
from maestro_edge.runtimes.protocol import Array, MeasuringProtocol, Operator, package_version
from maestro_edge.runtimes.pte import weights_of
from maestro_edge.runtimes.silence import silence
from maestro_edge.values import Alone, Delegation, LayerSpec, Precision, Rank, Timing, write_atomically

__all__ = ["BACKENDS", "ExecuTorch"]

Backend = Literal["xnnpack", "coreml", "vulkan", "ethos-u"]

BACKENDS: Final[dict[str, Backend]] = {
    "executorch": "xnnpack",
    "executorch-coreml": "coreml",
    "executorch-vulkan": "vulkan",
    "executorch-ethos-u": "ethos-u",
}
"""By the name of the runtime."""
_TITLES: Final[dict[Backend, str]] = {
    "xnnpack": "XNNPACK",
    "coreml": "Core ML",
    "vulkan": "Vulkan",
    "ethos-u": "Ethos-U",
}
_PRECISIONS: Final[dict[Backend, tuple[Precision, ...]]] = {
    # What XNNPACK makes of a model in halves for x86 is as large as in floats.
    "xnnpack": ("fp32", "int8-dynamic", "int8-static"),
    "coreml": ("fp32", "fp16"),
    "vulkan": ("fp32", "fp16"),
    "ethos-u": ("int8-static",),
}
_TRACED_ROUNDS: Final = 10
_ETHOS_U: Final = "ethos-u55-128"
"""Of the accelerators with 128 MACs a cycle: the compiler writes for one of them."""


class ExecuTorch:
    """ExecuTorch; XNNPACK kernels, of the CPU, compute channels in tiles of 16.

    In int8-dynamic only Linear layers are int8: convolutions would run slower than in fp32. Files for another
    `backend` than XNNPACK are written only: nothing here runs, checks or times them.
    """

    suffix = ".pte"
    rank_step = 16
    forks_after: str | None = "executorch.exir"

    def __init__(self, backend: Backend = "xnnpack") -> None:
        self.backend: Backend = backend
        self.name = next(name for name, each in BACKENDS.items() if each == backend)

    @property
    def version(self) -> str:
        return package_version("executorch", "executorch")

    def version_on(self, device: Device) -> str:
        self._require_xnnpack()
        return version_on(device, self.name)

    def runner_sha256(self, device: Device) -> str | None:
        """sha256 of the native runner that measures on `device`, and its libraries; None where Python does.

        Raises:
            DeviceError: no runner can run there.
        """
        self._require_xnnpack()
        return None if self.name in python_versions(device) else digest(build(device.facts().arch))

    def export(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        path: Path,
        precision: Precision = "fp32",
        *,
        calibration: Sequence[Tensor] | None = None,
    ) -> Delegation:
        title = _TITLES[self.backend]
        refuse_precision(f"ExecuTorch with {title}", precision, _PRECISIONS[self.backend])
        samples = calibration_inputs(inputs, calibration) if precision == "int8-static" else []
        with silence(), converting():
            try:
                from executorch.exir import to_edge_transform_and_lower

                partitioner, quantizer = _backend(self.backend, precision, is_dynamic=not samples)
            except ImportError as error:
                raise self._missing(error) from error
            try:
                program = exported_program(model, inputs)
                if quantizer is not None:
                    program = torch.export.export(_quantized(program, quantizer, samples or inputs), inputs)
                if self.backend == "xnnpack":  # Core ML has an operator of its own for attention
                    program = plain_attention(program)
                lowered = to_edge_transform_and_lower(program, partitioner=[partitioner])
                delegation = of_edge_program(lowered.exported_program().graph_module, title)
                content = bytes(lowered.to_executorch().buffer)
            except Exception as error:
                raise export_error("ExecuTorch", path, error) from error
        write_atomically(path, content)
        return delegation

    def export_entries(self, models: Mapping[str, nn.Module], inputs: tuple[Tensor, ...], path: Path) -> None:
        """A method for each model."""
        self._require_xnnpack()
        with silence(), converting():
            try:
                from executorch.exir import to_edge_transform_and_lower

                partitioner, _ = _backend(self.backend, "fp32", is_dynamic=False)
            except ImportError as error:
                raise self._missing(error) from error
            try:
                folded = fold_norms(models, inputs, columns=True)
                graphs = {name: each.multiply() for name, each in folded.items()}
                exported = {name: torch.export.export(graph, inputs) for name, graph in graphs.items()}
                programs = {name: plain_attention(program) for name, program in exported.items()}
                lowered = to_edge_transform_and_lower(programs, partitioner=[partitioner])
                content = store_by_rank(bytes(lowered.to_executorch().buffer))
            except Exception as error:
                raise export_error("ExecuTorch", path, error) from error
        write_atomically(path, overlap_segments(content))

    def _missing(self, error: ImportError) -> MissingExtra:
        if self.backend == "ethos-u" and (error.name or "").startswith(("tosa", "ethosu")):
            # their own dependencies would replace numpy and flatbuffers
            return MissingExtra("tosa-tools==2026.5.0 ethos-u-vela==5.1.0", None)
        return MissingExtra("executorch", "executorch")

    def _require_xnnpack(self) -> None:
        if self.backend != "xnnpack":
            raise DeviceError(
                f"files for {_TITLES[self.backend]} neither run nor are timed by maestro-edge: "
                "try them in your app, and plan on another runtime's table"
            )

    def predict(self, path: Path, inputs: Array) -> Array:
        try:
            self._require_xnnpack()
            return run_predict(self.name, path, inputs)
        except DeviceError as error:
            raise ExportError(f"{path.name} does not run: {_explain(str(error))}") from error

    def measure(self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol) -> dict[str, Timing]:
        self._require_xnnpack()
        return run_time(self.name, device, paths, protocol)

    def measure_alone(self, device: Device, path: Path, protocol: MeasuringProtocol) -> Alone:
        self._require_xnnpack()
        return run_alone(self.name, device, path, protocol)

    def measure_ops(
        self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol
    ) -> dict[str, list[Operator]]:
        """Times of the Linear and Conv2d operators inside whole networks, in execution order.

        Of ten rounds at most: ExecuTorch's Inspector takes longer to read a run than a small network to run.
        """
        self._require_xnnpack()
        few = protocol.model_copy(update={"rounds": min(protocol.rounds, _TRACED_ROUNDS)})
        result = run_ops(self.name, device, paths, few)
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "trace.etdump"
            found = {}
            for name, remote in result["traces"].items():
                device.pull(f"{FILES}/{Path(remote).name}", local)  # beside its file
                found[name] = _operators(local, paths[name], disturbed=is_disturbed(result, protocol))
        return found

    def write_probe(self, spec: LayerSpec, rank: Rank, path: Path, precision: Precision = "fp32") -> None:
        module, inputs = probe_module(spec, rank)
        self.export(module, inputs, path, precision, calibration=inputs)


def _backend(backend: Backend, precision: Precision, *, is_dynamic: bool) -> tuple[Any, Any]:
    """The partitioner that chooses a backend's operators, and the quantizer of its int8; None in floats."""
    if backend == "coreml":
        return _coreml_partitioner(precision), None
    if backend == "vulkan":
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        return VulkanPartitioner({"force_fp16": precision == "fp16"}), None
    if backend == "ethos-u":
        return _ethos_u()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return XnnpackPartitioner(), None if precision == "fp32" else _xnnpack_quantizer(is_dynamic=is_dynamic)


def _coreml_partitioner(precision: Precision) -> Any:
    """It computes in halves unless told otherwise."""
    with quiet_coremltools() as coremltools:
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

        specs = CoreMLBackend.generate_compile_specs(
            minimum_deployment_target=coremltools.target.iOS18,
            compute_precision=getattr(coremltools.precision, "FLOAT16" if precision == "fp16" else "FLOAT32"),
        )
        return CoreMLPartitioner(compile_specs=specs)


def _ethos_u() -> tuple[Any, Any]:
    from executorch.backends.arm.ethosu import EthosUCompileSpec, EthosUPartitioner
    from executorch.backends.arm.quantizer import EthosUQuantizer, get_symmetric_quantization_config

    spec = EthosUCompileSpec(_ETHOS_U)
    quantizer = EthosUQuantizer(spec)
    quantizer.set_global(get_symmetric_quantization_config())
    return EthosUPartitioner(spec), quantizer


def _xnnpack_quantizer(*, is_dynamic: bool) -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    quantizer = XNNPACKQuantizer()
    # prepare_pt2e folds norms into convolutions; tracing the patterns of unfolded ones would take seconds
    quantizer.SUPPORTED_PATTERNS = [each for each in quantizer.SUPPORTED_PATTERNS if not each.is_qat]
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    if is_dynamic:
        quantizer.set_operator_type(torch.ops.aten.linear.default, config)
    else:
        quantizer.set_global(config)
    return quantizer


def _quantized(program: Any, quantizer: Any, samples: Sequence[Tensor]) -> Any:
    """An int8 model with the ranges of `samples`; dynamic ones are found while it runs."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # Arm's passes refuse the module that checks the inputs' shapes
    prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
    with torch.no_grad():
        for sample in samples:
            prepared(sample)
    return convert_pt2e(prepared)


def _operators(trace: Path, path: Path, *, disturbed: bool) -> list[Operator]:
    with silence():
        from executorch.devtools import Inspector

        blocks, weights = Inspector(etdump_path=str(trace)).event_blocks, weights_of(path)
    operators = []
    for event in next((block.events for block in blocks if block.name == "Execute"), ()):
        kind = kernel_kind(event.name) if event.is_delegated_op else None
        if kind is not None and event.perf_data is not None:
            operators.append(Operator(kind, batched(event.perf_data.raw, disturbed=disturbed)))
    if len(weights) != len(operators):
        return operators
    return [each._replace(weights=shape) for each, shape in zip(operators, weights, strict=True)]


_CODES = {
    "0x2": "it waits for what was not loaded, such as weights in a file of their own",
    "0x10": "an input has another shape than the model was exported for",
    "0x12": "an input has another type, or there are more or fewer inputs than exported",
    "0x20": "the weights it was exported with are missing",
    "0x23": "the file is truncated or not an ExecuTorch program",
}


def _explain(message: str) -> str:
    """ExecuTorch's errors are bare numbers, some with a colon in them."""
    message = message.replace("0x:", "0x")
    for code, meaning in _CODES.items():
        if message.lower().rstrip().endswith(code) or f"{code})" in message or f"{code}," in message:
            return f"{meaning} ({code})"
    return message
