"""Core ML weights in few bits, and several packages in one: read back from disk and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from maestro_edge.errors import ExportError
from maestro_edge.runtimes import Agreement, digest, export, load, size_bytes
from maestro_edge.runtimes.coreml import combine
from maestro_edge.runtimes.mil import Program, quiet_coremltools
from maestro_edge.values import Precision


class Wide(nn.Module):
    """Layers whose input channels blocks of 32 divide, and one that they do not: (N, 3, 12, 12) → (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 96, 3, stride=2)
        self.body = nn.Conv2d(96, 64, 3)
        self.head = nn.Linear(64 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.body(torch.relu(self.stem(x)))).flatten(1))
        return logits


SAMPLES = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8-dynamic", "palettised-6bit", "int4-weights")


class Packages(NamedTuple):
    folder: Path
    agreements: dict[str, Agreement]

    def path(self, precision: str) -> Path:
        return self.folder / f"{precision}.mlpackage"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    torch.manual_seed(0)
    made = Packages(tmp_path_factory.mktemp("packages"), {})
    model = Wide().eval()
    for precision in PRECISIONS:
        path, runtime = made.path(precision), load("coreml")
        made.agreements[precision] = export(model, SAMPLES, path, runtime, precision=precision)
    return made


@pytest.mark.parametrize(
    ("precision", "bits", "least_db", "most_db"),
    [("int8-dynamic", 8, 38, 60), ("palettised-6bit", 6, 28, 50), ("int4-weights", 4.5, 15, 35)],
)
def test_weights_in_few_bits_are_small_and_pass_their_gate(
    precision: str, bits: float, least_db: float, most_db: float, packages: Packages
) -> None:
    """Every layer is compressed, those too that blocks do not divide; 6 dB are lost with each bit."""
    share = size_bytes(packages.path(precision)) / size_bytes(packages.path("fp32"))

    assert bits / 32 < share < bits / 32 + 0.08  # tables, and the program itself
    assert least_db < packages.agreements[precision].sqnr_db < most_db


def test_several_packages_become_functions_of_one(packages: Packages, tmp_path: Path) -> None:
    """Each function computes what its package does, and the first is the default."""
    path = tmp_path / "all.mlpackage"
    files = {"exact": packages.path("fp32"), "small": packages.path("int4-weights")}

    combine(files, path, SAMPLES[:4].numpy())

    for name, source in files.items():
        together, alone = (each(SAMPLES[:1])[0] for each in (Program(path, name), Program(source)))
        assert torch.allclose(together, alone, atol=1e-6)
    assert size_bytes(path) <= 1.02 * sum(map(size_bytes, files.values()))
    assert [found.name for found in tmp_path.iterdir()] == ["all.mlpackage"]
    with quiet_coremltools() as coremltools:
        spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    assert spec.description.defaultFunctionName == "exact"
    with pytest.raises(ExportError, match="has no function 'main', but "):
        Program(path)


def test_equal_weights_are_stored_once(packages: Packages, tmp_path: Path) -> None:
    """One package under two names takes the room of one."""
    one = packages.path("fp32")

    combine({"a": one, "b": one}, tmp_path / "twice.mlpackage", SAMPLES[:1].numpy())

    assert size_bytes(tmp_path / "twice.mlpackage") < 1.2 * size_bytes(one)


def test_packages_that_cannot_be_combined_leave_what_was_there(packages: Packages, tmp_path: Path) -> None:
    """One alone, and one that is none."""
    path, broken = tmp_path / "all.mlpackage", tmp_path / "broken.mlpackage"
    path.mkdir()
    (path / "older").write_text("kept")
    broken.mkdir()
    before = digest(path)

    with pytest.raises(ExportError, match="export two or more first"):
        combine({"a": packages.path("fp32")}, path, SAMPLES[:1].numpy())
    with pytest.raises(ExportError, match="cannot be exported to Core ML") as caught:
        combine({"a": packages.path("fp32"), "b": broken}, path, SAMPLES[:1].numpy())

    assert "\n" not in str(caught.value)
    assert digest(path) == before
    assert sorted(found.name for found in tmp_path.iterdir()) == ["all.mlpackage", "broken.mlpackage"]
