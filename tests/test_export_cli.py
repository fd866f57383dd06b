"""What `maestro-edge export` says and writes: shares of the backend, a layout, one package, other hardware."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maestro_edge.bundling import APPS
from maestro_edge.devices import LocalDevice
from maestro_edge.errors import BudgetError
from maestro_edge.recipes.data import Split
from maestro_edge.recipes.plans import plan_run, sensitivity_of
from maestro_edge.recipes.run import Run, create
from maestro_edge.recipes.tables import profile_run
from maestro_edge.recipes.trainings import train_run
from maestro_edge.recipes.variants import combine_run
from maestro_edge.runtimes import MeasuringProtocol, digest, load, size_bytes
from maestro_edge.runtimes.elastic import entry_name
from maestro_edge.runtimes.jobs import with_entry
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


def export_combined(run: Run) -> Manifest:
    """For LiteRT and, all in one package, for Core ML; fed in NHWC."""
    runtimes = ("--runtime", "litert", "--runtime", "coreml")
    done = here("export", str(run.folder), *runtimes, "--layout", "nhwc", "--combine", folder=run.folder)
    assert done.code == 0, done.err
    return Manifest.load(run.manifest_path)


@pytest.fixture(scope="module")
def combined(run: Run) -> Manifest:
    """Of the files of both runtimes; tests that export again leave the same."""
    return export_combined(run)


def test_export_tells_what_the_backend_took(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """Of LiteRT alone; the manifest says the layout."""
    manifest = export_combined(run)

    out = " ".join(capfd.readouterr().out.split())
    assert out.count("XNNPACK took") in (1, 2) and "run elsewhere" not in out
    assert (manifest.input.layout, manifest.input.shape[-1]) == ("NHWC", 1)
    assert [each.runtime for each in manifest.variants] == ["litert", "litert", "coreml", "coreml"]
    assert [each.delegated for each in manifest.variants] == [1, 1, None, None]


def test_combined_variants_are_entries_of_one_package(combined: Manifest, run: Run) -> None:
    """Each computes what it did in a package of its own; other runtimes' files are left as they are."""
    runtime, package = load("coreml"), run.folder / "files" / "coreml.mlpackage"
    images = torch.randn(4, *combined.input.shape[1:]).numpy()
    *others, dense, made = combined.variants

    together = [runtime.predict(with_entry(package, each.entry), images) for each in (dense, made)]

    alone = [runtime.predict(package.with_name(f"{each.name}.mlpackage"), images) for each in (dense, made)]
    assert np.allclose(together, alone, atol=1e-6) and not np.allclose(together[0], together[1], atol=1e-3)
    assert (dense.entry, made.entry) == ("dense", entry_name(made.name.removeprefix("coreml-")))
    for each in (dense, made):
        assert (each.file, each.sha256, each.size_bytes) == (package.name, digest(package), size_bytes(package))
    assert [(each.file, each.entry) for each in others] == [(f"{each.name}.tflite", None) for each in others]


def test_a_combined_package_goes_to_an_iphone_once(combined: Manifest, run: Run, tmp_path: Path) -> None:
    """The bundle has that package, and none of those it was made of; apps without Core ML do not get it."""
    argv = ("bundle", str(run.folder), "--out", str(tmp_path), "--app")
    ios, linux = (tmp_path / APPS[app].assets for app in ("ios", "linux"))

    done = [here(*argv, app, folder=tmp_path) for app in ("ios", "linux")]

    assert [each.code for each in done] == [0, 0], done
    assert Manifest.load(ios / "manifest.json").variants == combined.variants[2:]
    assert {each.name for each in ios.iterdir()} == {"coreml.mlpackage", "labels.txt", "manifest.json"}
    assert not list(linux.glob("*.mlpackage"))


def test_a_plan_that_bounds_bytes_is_not_combined(combined: Manifest, run: Run) -> None:
    """Its file would hold others too; nothing is changed."""
    *others, last = combined.variants
    bounded = last.model_copy(update={"budgets": (Budget(quantity="size_bytes", limit=1e6),)})
    manifest, before = combined.model_copy(update={"variants": (*others, bounded)}), run.manifest_path.read_bytes()

    with pytest.raises(BudgetError, match="bounds the bytes of a file of its own: export without --combine"):
        combine_run(run, manifest)

    assert run.manifest_path.read_bytes() == before


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
