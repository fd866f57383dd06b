"""What `maestro-edge export` says and writes: shares of the backend, a layout, one package, other hardware."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maestro_edge.devices import LocalDevice
from maestro_edge.recipes.data import Split
from maestro_edge.recipes.run import Run, create
from maestro_edge.recipes.steps import plan_run, profile_run, sensitivity_of, train_run
from maestro_edge.runtimes import MeasuringProtocol
from maestro_edge.runtimes.mil import quiet_coremltools
from maestro_edge.training import TrainSettings
from maestro_edge.values import Budget, Manifest
from tests.command import here, refused
from tests.conftest import FakeRuntime

ONE_EPOCH = TrainSettings(epochs=1, batch_size=32, bf16=False)


class Named(FakeRuntime):
    """Exact times under the name of a runtime that exports for real."""

    name = "litert"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """LeNet on 64 digits, one epoch, one plan on a table of exact times."""
    folder = tmp_path_factory.mktemp("export")
    run = create(folder / "run", data="digits", model="maestro_edge.recipes.vision:lenet")
    few = Split(run.data.train.inputs[:64], run.data.train.targets[:64])
    run.__dict__["data"] = replace(run.data, train=few)
    train_run(run, dense=None, nested=ONE_EPOCH)
    runtime, device, protocol = Named(), LocalDevice(), MeasuringProtocol(pause_s=0)
    table = profile_run(run, runtime, device, profiles=folder / "profiles", protocol=protocol)
    half = Budget(quantity="params", limit=run.network.params({}) / 2)
    plan_run(run, table, sensitivity_of(run, [table]), [(half,)])
    device.close()
    return run


def test_export_tells_what_the_backend_took_and_combines(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """Fed in NHWC, which the manifest says; Core ML files are functions of one package besides."""
    runtimes = ("--runtime", "litert", "--runtime", "coreml")

    done = here("export", str(run.folder), *runtimes, "--layout", "nhwc", "--combine", folder=run.folder)

    assert done.code == 0, done.err
    out = " ".join(capfd.readouterr().out.split())
    assert out.count("XNNPACK took") in (1, 2) and "run elsewhere" not in out
    manifest = Manifest.load(run.manifest_path)
    assert (manifest.input.layout, manifest.input.shape[-1]) == ("NHWC", 1)
    assert [each.runtime for each in manifest.variants] == ["litert", "litert", "coreml", "coreml"]
    assert [each.delegated for each in manifest.variants] == [1, 1, None, None]
    with quiet_coremltools() as coremltools:
        package = run.folder / "files" / "coreml.mlpackage"
        spec = coremltools.models.MLModel(str(package), skip_model_load=True).get_spec()
    assert set(spec.mlProgram.functions) == {each.name for each in manifest.variants if each.runtime == "coreml"}


def test_export_for_other_hardware_says_that_nothing_was_run(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """The files are there, without a number that nobody measured."""
    done = here("export", str(run.folder), "--runtime", "executorch-coreml", folder=run.folder)

    assert done.code == 0, done.err
    out = capfd.readouterr().out
    assert "Core ML took" in out and "not run here" in out.replace("\n", " ")
    manifest = Manifest.load(run.manifest_path)
    assert [(each.was_run, each.predicted_ms) for each in manifest.variants] == [(False, None), (False, None)]
    assert all((run.folder / "files" / each.file).exists() for each in manifest.variants)


def test_a_layout_that_is_none_is_refused(run: Run) -> None:
    """Before anything is exported."""
    line = refused(here("export", str(run.folder), "--layout", "chwn", folder=run.folder))

    assert "no layout 'chwn': choose nchw or nhwc" in line
