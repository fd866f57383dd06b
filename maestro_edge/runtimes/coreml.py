"""Core ML: ML programs for Apple devices, exported and checked on any machine, timed on Apple's only."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn

from maestro_edge.errors import DeviceError, ExportError
from maestro_edge.runtimes.conversion import contiguous_copy, export_error
from maestro_edge.runtimes.mil import Program, quiet_coremltools
from maestro_edge.runtimes.probe import probe_module
from maestro_edge.runtimes.protocol import Array, package_version
from maestro_edge.values import LayerSpec, Precision, Rank

__all__ = ["CoreML"]

SAMPLES_AT_ONCE: Final = 16
"""Samples evaluated side by side: every activation of the network is held for each of them."""


_ELSEWHERE = (
    "Core ML runs on Apple's devices: 'maestro-edge profiles probes' writes what an iPhone measures by itself, "
    "or plan on another runtime's table"
)


class CoreML:
    """Core ML on iOS 18, macOS 15 and later.

    int8-dynamic holds its weights in int8 and its activations in floats.
    """

    name = "coreml"
    suffix = ".mlpackage"
    # Apple publishes no channel multiple for the Neural Engine or GPU, and none was measured: 16 is a guess.
    rank_step = 16

    @property
    def version(self) -> str:
        return package_version("coremltools", "coreml")

    def version_on(self, device: object) -> NoReturn:
        raise DeviceError(_ELSEWHERE)

    def runner_sha256(self, device: object) -> NoReturn:
        raise DeviceError(_ELSEWHERE)

    def export(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        path: Path,
        precision: Precision = "fp32",
        *,
        calibration: Sequence[Tensor] | None = None,
    ) -> None:
        """Write a package with the shapes of `inputs`, its output named "output"; one at `path` is replaced.

        The input is named "input"; several are named "input_0", "input_1", ...

        Raises:
            ExportError: the model cannot be converted, the precision is int8-static, or `path` cannot be
                written; nothing of it is left.
            MissingExtra: coremltools is not installed.
        """
        path = Path(path)
        if precision == "int8-static":
            raise ExportError("Core ML offers no int8-static: choose fp32, fp16 or int8-dynamic")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
                package = Path(folder) / f"new{self.suffix}"
                _convert(model, inputs, package, precision, path.name)
                _make_readable(package)
                if path.exists():  # a folder cannot be renamed onto another
                    path.rename(Path(folder) / "old")
                package.rename(path)
        except OSError as error:
            raise ExportError(
                f"{path}: cannot be written ({error.strerror or error}): export to another folder"
            ) from error

    def predict(self, path: Path, inputs: Array) -> Array:
        """What the saved package gives for `inputs` (N, C, H, W), each sample alone: (N, ...).

        Raises:
            ExportError: the package cannot be read or checked here, or takes other inputs.
            MissingExtra: coremltools is not installed.
        """
        program = Program(path)
        samples = torch.tensor(inputs, dtype=torch.float32).unsqueeze(1)  # (N, 1, C, H, W)
        with torch.no_grad():
            outputs = torch.func.vmap(lambda sample: program(sample)[0], chunk_size=SAMPLES_AT_ONCE)(samples)
        result: Array = outputs.squeeze(1).numpy()  # (N, 1, ...) before
        return result

    def measure(self, device: object, paths: Mapping[str, Path], protocol: object) -> NoReturn:
        """Core ML is timed by Apple's tools on Apple's devices.

        Raises:
            DeviceError: always.
        """
        raise DeviceError(
            f"{len(paths)} Core ML package(s) cannot be timed from this machine: "
            "measure layers on the iPhone ('maestro-edge profiles probes'), or the packages with Xcode"
        )

    def measure_alone(self, device: object, path: Path, protocol: object) -> NoReturn:
        raise DeviceError(_ELSEWHERE)

    def write_probe(self, spec: LayerSpec, rank: Rank, path: Path, precision: Precision = "fp32") -> None:
        module, inputs = probe_module(spec, rank)
        # the example is NHWC in memory, which coremltools refuses; Core ML chooses the layout by itself
        self.export(module, tuple(each.contiguous() for each in inputs), path, precision)


def _convert(model: nn.Module, inputs: tuple[Tensor, ...], package: Path, precision: Precision, name: str) -> None:
    names = ["input"] if len(inputs) == 1 else [f"input_{index}" for index in range(len(inputs))]
    with quiet_coremltools() as coremltools:
        tensor_type = coremltools.TensorType
        try:
            converted = coremltools.convert(
                _exported_program(model, inputs),
                convert_to="mlprogram",
                minimum_deployment_target=coremltools.target.iOS18,
                compute_precision=getattr(coremltools.precision, "FLOAT16" if precision == "fp16" else "FLOAT32"),
                inputs=[tensor_type(key, each.shape) for key, each in zip(names, inputs, strict=True)],
                outputs=[tensor_type("output")],
                package_dir=str(package),
                skip_model_load=True,
            )
            if precision == "int8-dynamic":
                _quantize_weights(coremltools, converted).save(str(package))
        except Exception as error:
            raise export_error("Core ML", Path(name), error) from error


def _quantize_weights(coremltools: Any, converted: Any) -> Any:
    """Weights in int8, one scale a channel; Core ML itself chooses how it computes with them."""
    optimize = coremltools.optimize.coreml
    symmetric = optimize.OpLinearQuantizerConfig(mode="linear_symmetric")
    return optimize.linear_quantize_weights(converted, optimize.OptimizationConfig(global_config=symmetric))


def _exported_program(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    # coremltools 9.0 drops the `approximate` of an exported GELU and would write every tanh GELU as an exact
    # one (https://github.com/apple/coremltools/pull/2863); spelled out, it finds the tanh GELU again
    return torch.export.export(contiguous_copy(model), inputs).run_decompositions(
        {torch.ops.aten.gelu.default: _gelu}
    )


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    """Hendrycks and Gimpel, Gaussian error linear units, section 2; an exact GELU is left as it is."""
    if approximate == "none":
        return NotImplemented
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


def _make_readable(package: Path) -> None:
    """coremltools lets only the owner read the weights: a web server could not serve the bundle."""
    for item in (package, *package.rglob("*")):
        item.chmod(0o755 if item.is_dir() else 0o644)
