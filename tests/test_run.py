"""The steps on a run folder with a runtime of exact times: what chooses, what is planned again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import maestro_edge.recipes.plans
from maestro_edge.devices import LocalDevice
from maestro_edge.errors import BudgetError, CheckpointError, DataError, TableError
from maestro_edge.planning import Interaction, account, plan, plan_nested, reachable_ms, uniform_ranks
from maestro_edge.recipes.bundles import bundle_run
from maestro_edge.recipes.chains import Chain, chain_sampler
from maestro_edge.recipes.data import Data, Split
from maestro_edge.recipes.demo import spread_budgets
from maestro_edge.recipes.deploy import verify_run
from maestro_edge.recipes.plans import best_plans, clear_plans, plan_run, sensitivity_of
from maestro_edge.recipes.run import Run, augment, create, open_run, remove
from maestro_edge.recipes.tables import load_table, profile_run, table_of
from maestro_edge.recipes.trainings import train_run
from maestro_edge.recipes.variants import export_entries, export_run
from maestro_edge.runtimes import MeasuringProtocol, digest
from maestro_edge.runtimes.jobs import of_entry
from maestro_edge.runtimes.protocol import Array
from maestro_edge.training import AlternatingSampler, ChainSampler, TrainSettings
from maestro_edge.values import (
    Budget,
    Cut,
    LatencyTable,
    Manifest,
    Precision,
    Promise,
    Quantity,
    Rank,
    Sensitivity,
)
from tests.conftest import FakeRuntime

PROTOCOL = MeasuringProtocol(pause_s=0)
DENSE = TrainSettings(epochs=1, batch_size=32, bf16=False)
NESTED = TrainSettings(epochs=1, batch_size=32, bf16=False)


class Untouchable(Split):
    """A test split that must not be looked at."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the test split was asked for its {name}")


def small(data: Data) -> Data:
    def first(split: Split, count: int) -> Split:
        return Split(split.inputs[:count], split.targets[:count])

    return replace(
        data, train=first(data.train, 64), validation=first(data.validation, 48), test=first(data.test, 40)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on 64 digits, one epoch each, whose test split refuses every look."""
    run = create(tmp_path_factory.mktemp("run"), data="digits")
    run.__dict__["data"] = replace(small(run.data), test=Untouchable())
    train_run(run, dense=DENSE, nested=NESTED)
    return run


def test_training_spends_itself_on_nested_sizes_that_plans_want(trained: Run) -> None:
    """The chain is found on training inputs after the dense training, falls layer by layer, and is kept."""
    chain = Chain.load(trained.folder / "ordered" / "chain.json")

    macs = [trained.network.macs(profile) for profile in chain.profiles]
    assert chain.network == trained.network.fingerprint
    assert len(macs) > 2 and macs == sorted(macs, reverse=True) and macs[0] < trained.network.macs({})
    ChainSampler(chain.profiles)  # refuses what is not nested


@pytest.mark.parametrize("change", [{"sampler": "shared"}, {"penalty": 0.1}, {"target": {"macs": 1e6}}])
def test_only_the_default_without_a_size_of_its_own_has_a_chain(
    trained: Run, change: dict[str, Any], tmp_path: Path
) -> None:
    """Another sampler is kept, and a λ or a target moves the ranks itself."""
    settings = TrainSettings.model_validate({**NESTED.model_dump(), **change})

    assert chain_sampler(trained, settings, tmp_path)(trained.ordered) is None
    assert list(tmp_path.iterdir()) == []


def test_a_chain_is_read_again_when_training_goes_on(trained: Run, tmp_path: Path) -> None:
    """By a resumed run, whose network is not ordered yet; a chain of another network is refused."""
    path = tmp_path / "chain.json"
    chain = Chain.load(trained.folder / "ordered" / "chain.json")
    chain.save(path)

    sampler = chain_sampler(trained, NESTED, tmp_path)(trained.new_model())

    assert isinstance(sampler, AlternatingSampler) and sampler.profiles == chain.profiles
    chain.model_copy(update={"network": "0" * 12}).save(path)
    with pytest.raises(CheckpointError, match=r"chain\.json is of another network"):
        chain_sampler(trained, NESTED, tmp_path)(trained.ordered)


def test_a_training_that_began_without_a_chain_goes_on_without(trained: Run, tmp_path: Path) -> None:
    """As the checkpoint of an older version did."""
    (tmp_path / "checkpoint.json").write_text("{}")

    assert chain_sampler(trained, NESTED, tmp_path)(trained.ordered) is None


class Planned:
    """A trained run with a table, a sensitivity table and three budgets."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.profiles, self.device, self.runtime = run, folder / "profiles", LocalDevice(), FakeRuntime()
        self.table: LatencyTable = profile_run(
            run, self.runtime, self.device, profiles=self.profiles, protocol=PROTOCOL
        )
        self.sensitivity: Sensitivity = sensitivity_of(run, [self.table])
        self.budgets = spread_budgets(run.network, [self.table], self.sensitivity)
        self.plans = plan_run(run, self.table, self.sensitivity, self.budgets)

    def verify(self) -> tuple[Manifest, list[str]]:
        return verify_run(self.run, self.runtime, self.device, profiles=self.profiles, protocol=PROTOCOL)


@pytest.fixture(scope="module")
def planned(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    return Planned(trained, tmp_path_factory.mktemp("tables"))


def test_a_table_that_could_not_be_kept_is_not_measured(trained: Run, tmp_path: Path) -> None:
    """A file stands where its folder should be: that is told before the work, not behind it."""
    runtime, device = FakeRuntime(), LocalDevice()
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=r"file/profiles: cannot be written \(.*/file is no folder\): choose"):
        profile_run(trained, runtime, device, profiles=tmp_path / "file" / "profiles", protocol=PROTOCOL)

    device.close()
    assert (runtime.measured, runtime.exports) == ([], 0)


def test_a_chain_can_come_from_measured_milliseconds(planned: Planned, tmp_path: Path) -> None:
    """Its ranks are those of the table, and its sizes fall in ms."""
    sampler = chain_sampler(planned.run, NESTED, tmp_path, table=planned.table)(planned.run.ordered)

    assert isinstance(sampler, AlternatingSampler)
    ms = [planned.table.layers_ms(planned.run.network, profile) for profile in sampler.profiles]
    assert len(ms) > 2 and ms == sorted(ms, reverse=True)
    assert ms[0] < planned.table.layers_ms(planned.run.network, {})


def test_a_table_of_other_layers_makes_no_chain(planned: Planned, tmp_path: Path) -> None:
    """It is refused by the layer, and nothing is kept."""
    other = planned.table.model_copy(update={"rows": planned.table.rows[:1]})

    with pytest.raises(TableError, match="no row for"):
        chain_sampler(planned.run, NESTED, tmp_path, table=other)(planned.run.ordered)

    assert list(tmp_path.iterdir()) == []


def test_the_test_split_chooses_nothing(planned: Planned) -> None:
    """Training, profiling, sensitivity and planning end without one look at it."""
    assert [item.budget_ms for item in planned.plans] == list(planned.budgets)
    with pytest.raises(AssertionError, match="test split"):
        planned.run.score(planned.run.ordered, planned.run.data.test)


def test_three_budgets_lie_between_the_fastest_plan_and_dense(planned: Planned) -> None:
    """Each is reachable, below dense, and smaller than the one before."""
    network = planned.run.network
    floor = reachable_ms(network, planned.table, planned.sensitivity)

    assert planned.table.predict_ms(network, {}) > planned.budgets[0] > planned.budgets[1] > planned.budgets[2]
    assert planned.budgets[2] > floor


@pytest.fixture
def exported(planned: Planned) -> Planned:
    """The plans exported anew with the real test split, by a runtime that keeps its word."""
    planned.runtime.slowdown = 1.0
    clear_plans(planned.run)
    planned.run.__dict__["data"] = small(create(planned.run.folder, data="digits").data)
    planned.plans = plan_run(planned.run, planned.table, planned.sensitivity, planned.budgets)
    planned.table.save(planned.profiles / planned.table.file_name)
    export_run(planned.run, planned.device, [planned.runtime])
    return planned


def test_variants_that_keep_their_budget_are_left_alone(exported: Planned) -> None:
    """On a device that behaves as profiled nothing is planned again, and prediction meets measurement."""
    manifest, log = exported.verify()

    assert log == []
    for variant in manifest.variants[1:]:
        assert variant.measured_ms and variant.budget_ms and variant.predicted_ms
        assert variant.measured_ms.p50 <= variant.budget_ms
        assert variant.measured_ms.p50 == pytest.approx(variant.predicted_ms, rel=0.02)
    assert manifest.variants[0].budget_ms is None


def test_a_variant_over_its_budget_is_planned_again_with_the_new_times(exported: Planned) -> None:
    """A device that became 12 % slower: after one round every budget holds again, and the table knows."""
    exported.runtime.slowdown = 1.12

    manifest, log = exported.verify()

    assert any("planned again" in line for line in log)
    for variant in manifest.variants[1:]:
        assert variant.measured_ms and variant.budget_ms
        assert variant.measured_ms.p50 <= variant.budget_ms
    saved = LatencyTable.load(exported.profiles / exported.table.file_name)
    assert len(saved.calibrations[0].networks) > len(exported.table.calibrations[0].networks)


class Warming(FakeRuntime):
    """A device that is slower each time it is measured, until it is as hot as it gets."""

    def __init__(self, inner: FakeRuntime, slowdowns: list[float]) -> None:
        super().__init__()
        self.models, self.slowdowns = inner.models, slowdowns

    def measure(self, device: Any, paths: Any, protocol: Any) -> Any:
        self.slowdown = self.slowdowns.pop(0) if len(self.slowdowns) > 1 else self.slowdowns[0]
        return super().measure(device, paths, protocol)


@pytest.mark.parametrize("prefers_shares", [True, False])
def test_of_the_sets_of_plans_those_that_lose_least_together_are_kept(
    planned: Planned, monkeypatch: pytest.MonkeyPatch, prefers_shares: bool
) -> None:
    """What is measured decides: plans that are nowhere below one share of all ranks, or those of the sums."""
    given = planned.run.network, planned.table, planned.sensitivity
    floors = [uniform_ranks(*given, budget) for budget in planned.budgets]
    shared = {str(item.ranks) for item in plan_nested(*given, planned.budgets, floors=floors)}
    summed = [item.ranks for item in plan_nested(*given, planned.budgets)]
    liked = shared if prefers_shares else {str(ranks) for ranks in summed}

    def told(model: Any, losses: Any, ranks: Any, *rest: Any, **named: Any) -> Interaction:
        cut = Cut(loss_increase=0.0 if str(ranks) in liked else 1.0, loss_se=0.0, top1_drop=0.0, top1_se=0.0, n=9)
        return Interaction(ranks=ranks, measured=cut, additive=1.0)

    monkeypatch.setattr(maestro_edge.recipes.plans, "measure_interaction", told)
    monkeypatch.setattr(maestro_edge.recipes.plans, "corrected", lambda losses, *rest, **named: losses)

    made = best_plans(planned.run, planned.table, planned.sensitivity, planned.budgets)

    assert [item.ranks for item in made] != summed or not prefers_shares
    assert {str(item.ranks) for item in made} == liked


def test_a_plan_above_a_floor_tells_its_gap_to_the_optimum_of_any_ranks(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without nesting too; what uniform ranks cost beyond the best sum is in the gap."""
    given = planned.run.network, planned.table, planned.sensitivity
    cut = Cut(loss_increase=1.0, loss_se=0.0, top1_drop=0.0, top1_se=0.0, n=9)
    summed = [plan(*given, budget) for budget in planned.budgets]

    def told(model: Any, losses: Any, ranks: Any, *rest: Any, **named: Any) -> Interaction:
        is_summed = any(ranks == item.ranks for item in summed)
        worse = cut if is_summed else cut.model_copy(update={"loss_increase": 0.0})
        return Interaction(ranks=ranks, measured=worse, additive=1.0)

    monkeypatch.setattr(maestro_edge.recipes.plans, "measure_interaction", told)
    monkeypatch.setattr(maestro_edge.recipes.plans, "corrected", lambda losses, *rest, **named: losses)

    made = best_plans(planned.run, planned.table, planned.sensitivity, planned.budgets, nested=False)

    assert [item.least_charge for item in made] == [item.least_charge for item in summed]
    assert any(item.ranks != best.ranks and item.gap > best.gap for item, best in zip(made, summed, strict=True))


def test_the_loop_goes_on_until_every_budget_holds_and_tells_its_rounds(exported: Planned) -> None:
    """A device that warms up from round to round: each is in the manifest, and larger budgets keep more ranks."""
    device = Warming(exported.runtime, [1.08, 1.08, 1.16, 1.16, 1.2])

    manifest, log = verify_run(
        exported.run, device, exported.device, profiles=exported.profiles, protocol=PROTOCOL
    )

    planned = [variant for variant in manifest.variants if variant.is_planned]
    assert not any(variant.missed for variant in planned)
    assert not any("still" in line for line in log)
    assert max(len(variant.rounds) for variant in planned) >= 3
    for variant in planned:
        assert [bool(done.missed) for done in variant.rounds][-1] is False
        assert variant.rounds[-1].measured_ms == variant.measured_ms
        assert variant.rounds[-1].predicted_ms == variant.predicted_ms
    assert Manifest.load(exported.run.manifest_path) == manifest
    for large, small in pairwise(planned):
        assert all(
            a == "dense" or (b != "dense" and b <= a)
            for a, b in zip(large.ranks.values(), small.ranks.values(), strict=True)
        )


class Disturbed(FakeRuntime):
    """Twice as slow in the first measurement, which may say so."""

    def __init__(self, inner: FakeRuntime, *, told: bool) -> None:
        super().__init__()
        self.models, self.rounds, self.told = inner.models, 0, told

    def measure(self, device: Any, paths: Any, protocol: Any) -> Any:
        self.rounds += 1
        calm = self.rounds > protocol.most_runs
        self.slowdown = 1.0 if calm else 2.0
        timings = super().measure(device, paths, protocol)
        update = {"disturbed": self.told and not calm}
        return {name: timing.model_copy(update=update) for name, timing in timings.items()}


@pytest.mark.parametrize("told", [True, False])
def test_a_disturbed_measurement_takes_no_ranks_away(exported: Planned, told: bool) -> None:
    """What is slower than it was, whether or not the device knows of other programs, is first measured again."""
    before = Manifest.load(exported.run.manifest_path)
    runtime = Disturbed(exported.runtime, told=told)

    manifest, log = verify_run(
        exported.run, runtime, exported.device, profiles=exported.profiles, protocol=PROTOCOL
    )

    assert [variant.ranks for variant in manifest.variants] == [variant.ranks for variant in before.variants]
    assert len(log) == 1 and "was disturbed while budgets were missed; measured again" in log[0]
    assert not any(variant.missed for variant in manifest.variants)


def test_what_could_not_be_planned_lower_is_tried_again_when_the_device_has_recovered(exported: Planned) -> None:
    """A third slower for two rounds, so that the smallest budget seems out of reach, which it then is not."""
    runtime = Warming(exported.runtime, [*[1.35] * (PROTOCOL.most_runs + PROTOCOL.calm_runs), 1.06])

    manifest, log = verify_run(
        exported.run, runtime, exported.device, profiles=exported.profiles, protocol=PROTOCOL
    )

    assert any("cannot be planned lower" in line for line in log)
    assert any("planned again" in line for line in log)
    assert not any(variant.missed for variant in manifest.variants)


def test_deploying_profiles_what_is_not_there_and_nothing_over_what_is_damaged(
    planned: Planned, tmp_path: Path
) -> None:
    """A known table is used as it is; a damaged one is refused before anything is measured."""
    run, runtime, device = planned.run, FakeRuntime(), planned.device

    made = table_of(run, runtime, device, profiles=tmp_path, protocol=PROTOCOL)
    measured = len(runtime.measured)
    again = table_of(run, runtime, device, profiles=tmp_path, protocol=PROTOCOL)
    assert measured and again == made and len(runtime.measured) == measured
    (tmp_path / made.file_name).write_text("{")
    with pytest.raises(TableError, match="not a readable LatencyTable"):
        table_of(run, runtime, device, profiles=tmp_path, protocol=PROTOCOL)
    assert len(runtime.measured) == measured


def test_one_round_only_measures(exported: Planned) -> None:
    """What misses is told, and nothing is planned again."""
    exported.runtime.slowdown = 1.12

    manifest, log = verify_run(
        exported.run, exported.runtime, exported.device, profiles=exported.profiles, protocol=PROTOCOL, rounds=1
    )

    assert any(variant.missed for variant in manifest.variants)
    assert len(log) > 1 and all("still measures" in line for line in log[1:])
    assert "dense takes" in log[0] and "1.12 times its" in log[0] and "profile and plan again" in log[0]


def test_a_device_that_became_faster_is_told(exported: Planned) -> None:
    """Every budget holds, but larger plans would too."""
    exported.runtime.slowdown = 0.7

    manifest, log = exported.verify()

    assert not any(variant.missed for variant in manifest.variants)
    assert len(log) == 1 and "0.70 times its" in log[0] and "profile and plan again" in log[0]


@pytest.mark.parametrize("quantity", ["p90_ms", "size_bytes", "memory_bytes"])
def test_other_budgets_are_held_against_what_was_measured_too(exported: Planned, quantity: Quantity) -> None:
    """The file's own bytes, the slowest tenth of the runs, the process's peak."""
    account_of = account(quantity, exported.run.network, exported.table)
    smallest = dict.fromkeys(exported.plans[0].ranks, 16)
    limit = 0.5 * (
        account_of.of_ranks(exported.run.network, {}) + account_of.of_ranks(exported.run.network, smallest)
    )
    budget = Budget(quantity=quantity, limit=limit)
    clear_plans(exported.run)
    (made,) = plan_run(exported.run, exported.table, exported.sensitivity, [[budget]])
    export_run(exported.run, exported.device, [exported.runtime])

    manifest, _ = exported.verify()

    (variant,) = (each for each in manifest.variants if each.is_planned)
    assert variant.budgets == (budget,) and variant.budget_ms is None
    value = variant.measured(quantity)
    assert value is not None
    assert variant.missed == ((budget,) if value > budget.limit else ())
    assert (variant.alone is not None) == (quantity == "memory_bytes")
    assert variant.name == f"fake-{budget.tag}" and made.name == variant.name


def test_a_budget_out_of_reach_is_said_to_be_missed(exported: Planned) -> None:
    """Ten times slower: the variant stays, the log says that it still misses its budget."""
    exported.runtime.slowdown = 10.0

    manifest, log = exported.verify()

    assert any("cannot be planned lower" in line for line in log)
    assert any("still measures" in line for line in log)
    assert all(v.measured_ms for v in manifest.variants)


def test_exporting_again_writes_nothing_that_is_there(exported: Planned) -> None:
    """Finished exports are kept by weights, plan and runtime version."""
    before = exported.runtime.exports

    export_run(exported.run, exported.device, [exported.runtime])
    same = exported.runtime.exports
    (exported.run.folder / "files" / "fake-dense.fake").unlink()
    export_run(exported.run, exported.device, [exported.runtime])

    assert (same, exported.runtime.exports) == (before, before + 1)


def test_all_files_are_fed_in_the_layout_that_was_asked_for(exported: Planned) -> None:
    """The manifest tells apps so, the gate fed it, and what is planned again keeps to it."""
    run, runtime, device = exported.run, exported.runtime, exported.device

    manifest, _ = export_run(run, device, [runtime], layout="NHWC")

    assert (manifest.input.layout, manifest.input.shape) == ("NHWC", (1, 32, 32, 1))
    assert all(variant.cosine == pytest.approx(1) for variant in manifest.variants)
    path = run.folder / "files" / manifest.variants[0].file
    assert runtime.predict(path, np.zeros((2, 32, 32, 1), np.float32)).shape == (2, 10)
    runtime.slowdown = 1.3
    again, log = exported.verify()
    assert again.input.layout == "NHWC" and any("planned again" in line for line in log)
    missed = next(variant for variant in again.variants if len(variant.rounds) > 1)
    assert runtime.predict(run.folder / "files" / missed.file, np.zeros((1, 32, 32, 1), np.float32)).shape == (
        1,
        10,
    )


class Elsewhere(FakeRuntime):
    """Its files run on no machine here."""

    name = "executorch-vulkan"

    def predict(self, path: Path, inputs: Array) -> Array:
        raise AssertionError("the file is not run")


def test_files_that_are_not_run_here_follow_the_plans_and_claim_nothing(exported: Planned) -> None:
    """They have the ranks of the other runtime's plans, no times and no agreement; no budget counts for them."""
    manifest, _ = export_run(exported.run, exported.device, [exported.runtime, Elsewhere()])

    ours = [variant for variant in manifest.variants if variant.runtime == "executorch-vulkan"]
    theirs = [variant for variant in manifest.variants if variant.runtime == "fake"]
    assert [variant.ranks for variant in ours] == [variant.ranks for variant in theirs]
    assert {(each.was_run, each.sqnr_db, each.predicted_ms, each.measured_ms) for each in ours} == {
        (False, None, None, None)
    }
    assert all(variant.was_run for variant in theirs)
    verified, _ = exported.verify()
    assert [variant for variant in verified.variants if variant.runtime == "executorch-vulkan"] == ours


class Dull(FakeRuntime):
    """Right on the gate's few images; on more it gives each image the least likely class."""

    def predict(self, path: Path, inputs: Array) -> Array:
        outputs = super().predict(path, inputs)
        return outputs if len(inputs) <= 32 else -outputs


def test_a_file_that_loses_the_accuracy_of_its_model_is_removed(exported: Planned) -> None:
    """Agreement on 32 images is not all: a rival in int8 that is wrong on the others is left out, and told."""
    manifest, log = export_run(exported.run, exported.device, [Dull()], rivals=["int8-dynamic"])

    assert "is right on" in log[0] and "int8-dynamic costs this network too much" in log[0]
    assert {variant.precision for variant in manifest.variants} == {"fp32"}
    assert not (exported.run.folder / "files" / "fake-int8-dynamic-dense.fake").exists()


def test_files_are_exported_side_by_side_where_that_can_be(exported: Planned) -> None:
    """In processes that leave files and records; here, what one refused is tried again to be told."""
    runtime, seen = Dull(version="2.0"), list[tuple[int, int]]()
    runtime.forks_after = "os"

    manifest, log = export_run(
        exported.run,
        exported.device,
        [runtime],
        rivals=["int8-dynamic"],
        progress=lambda done, total, what: seen.append((done, total)),
    )

    plans = len(exported.run.plans())
    assert runtime.exports == 1
    assert len(log) == 1 and "int8-dynamic costs this network too much" in log[0]
    assert [variant.runtime_version for variant in manifest.variants] == ["2.0"] * (1 + plans)
    for variant in manifest.variants:
        assert digest(exported.run.folder / "files" / variant.file) == variant.sha256
    assert seen == [(done, plans + 2) for done in range(1, plans + 3)]


def test_the_bundle_holds_what_the_manifest_names(exported: Planned, tmp_path: Path) -> None:
    """Files, labels and how an app feeds the model."""
    exported.verify()

    folder = bundle_run(exported.run, tmp_path / "bundle")

    manifest = Manifest.load(folder / "manifest.json")
    files = {variant.file for variant in manifest.variants}
    assert {path.name for path in folder.iterdir()} == {"labels.txt", "manifest.json", *files}
    assert [(each.soc, each.runtime) for each in manifest.choices] == [(None, "fake")]
    assert manifest.labels == tuple("0123456789")
    assert manifest.input.shape == (1, 1, 32, 32) and len(manifest.input.mean) == 1


class Elastic(FakeRuntime):
    """Files of several entries, each the text of a file of its own."""

    def __init__(self, inner: FakeRuntime) -> None:
        super().__init__()
        self.models = inner.models

    def export_entries(self, models: Mapping[str, nn.Module], inputs: tuple[Tensor, ...], path: Path) -> None:
        texts = {}
        for entry, model in models.items():
            self.export(model, inputs, path)
            texts[entry] = path.read_text()
        path.write_text(json.dumps(texts))

    def predict(self, path: Path, inputs: Array) -> Array:
        with TemporaryDirectory() as folder:
            return super().predict(alone(path, Path(folder)), inputs)

    def measure(self, device: Any, paths: Any, protocol: Any) -> Any:
        with TemporaryDirectory() as folder:
            own = {name: alone(path, Path(folder)) for name, path in paths.items()}
            return super().measure(device, own, protocol)


def alone(path: Path, folder: Path) -> Path:
    """The entry of a path as a file of its own."""
    file, entry = of_entry(path)
    if not entry:
        return path
    (folder / entry).write_text(json.loads(file.read_text())[entry])
    return folder / entry


def test_plans_in_one_file_are_measured_and_planned_again_there(exported: Planned, tmp_path: Path) -> None:
    """On a device that became slower: entries of one file, whose new plans leave no old content behind."""
    run, runtime = exported.run, Elastic(exported.runtime)
    export_run(run, exported.device, [runtime], elastic=True)
    before = Manifest.load(run.manifest_path)
    runtime.slowdown = 1.12

    manifest, log = verify_run(run, runtime, exported.device, profiles=exported.profiles, protocol=PROTOCOL)

    dense, *planned = manifest.variants
    assert any("planned again" in line for line in log) and not any(variant.missed for variant in planned)
    assert dense.entry is None and len({variant.entry for variant in planned}) == len(exported.plans)
    assert {variant.file for variant in planned} == {"fake-elastic.fake"}
    assert {variant.sha256 for variant in planned} == {digest(run.folder / "files" / "fake-elastic.fake")}
    assert planned[0].sha256 != before.variants[1].sha256
    assert all(variant.rounds[-1].measured_ms == variant.measured_ms for variant in planned)
    folder = bundle_run(run, tmp_path / "bundle")
    assert sorted(path.name for path in folder.iterdir()) == [
        dense.file,
        "fake-elastic.fake",
        "labels.txt",
        "manifest.json",
    ]


def dense_in(ranks: Mapping[str, Rank]) -> set[str]:
    return {name for name, rank in ranks.items() if rank == "dense"}


def test_plans_for_one_file_agree_on_forms_and_still_do_when_planned_again(exported: Planned) -> None:
    """Every layer is dense in all of them or in none; plans that do not agree are told what they cost."""
    run, runtime = exported.run, Elastic(exported.runtime)
    given = run, exported.table, exported.sensitivity, exported.budgets
    apart = {frozenset(dense_in(item.ranks)) for item in exported.plans}
    _, doubled = export_run(run, exported.device, [runtime], elastic=True)
    plans = plan_run(*given, elastic=True)
    _, single = export_run(run, exported.device, [runtime], elastic=True)
    runtime.slowdown = 1.12

    manifest, log = verify_run(run, runtime, exported.device, profiles=exported.profiles, protocol=PROTOCOL)

    count = len(frozenset.union(*apart) - frozenset.intersection(*apart))
    assert count and single == [] and len(doubled) == 1
    assert (
        f"holds {count} layers both dense and as pairs: plan all its budgets in one call with --elastic"
        in doubled[0]
    )
    assert any("planned again" in line for line in log)
    planned = [variant.ranks for variant in manifest.variants if variant.is_planned]
    assert len({frozenset(dense_in(ranks)) for ranks in (*(item.ranks for item in plans), *planned)}) == 1


@pytest.mark.parametrize(
    ("nested", "precision", "what"), [(False, "fp32", "not nested"), (True, "mixed", "in mixed")]
)
def test_plans_that_could_share_no_weights_are_refused(
    planned: Planned, nested: bool, precision: Precision, what: str
) -> None:
    """Before anything is evaluated."""
    table = planned.table.model_copy(update={"precision": precision})

    with pytest.raises(BudgetError, match=f"plans {what} share no weights: plan without --elastic"):
        best_plans(planned.run, table, planned.sensitivity, planned.budgets, nested=nested, elastic=True)


def test_plans_in_one_file_are_exported_once(exported: Planned) -> None:
    """What is there already stays, and a budget of bytes is not that of a file with others in it."""
    run, runtime = exported.run, Elastic(exported.runtime)
    export_run(run, exported.device, [runtime], elastic=True)
    count = runtime.exports

    export_run(run, exported.device, [runtime], elastic=True)

    assert runtime.exports == count
    bytes_budget = Promise(budget=Budget(quantity="size_bytes", limit=1e6), planned=1e6, predicted=1e5, dense=1e6)
    bound = exported.plans[0].model_copy(update={"promises": (bytes_budget,)})
    with pytest.raises(BudgetError, match="bounds the bytes of a file of its own: export without --elastic"):
        export_entries(run, runtime, [bound])


def test_times_of_an_emulated_device_go_through_every_step_but_into_no_app(
    exported: Planned, tmp_path: Path
) -> None:
    """Its table serves where no measured one is, verifying says what it is worth, bundling refuses its plans."""
    run, runtime, device = exported.run, exported.runtime, exported.device
    table = profile_run(run, runtime, device, profiles=tmp_path, protocol=PROTOCOL, emulated=True)

    served = load_table(run, runtime, device, profiles=tmp_path, threads=1)
    plan_run(run, served, exported.sensitivity, exported.budgets)
    export_run(run, device, [runtime])
    _, log = verify_run(run, runtime, device, profiles=tmp_path, protocol=PROTOCOL)

    assert served == table
    assert log == list(table.doubts(run.network))
    with pytest.raises(TableError, match=r"was made on an emulated .*: plan on a measured table"):
        bundle_run(run, tmp_path / "bundle")
    exported.table.save(tmp_path / exported.table.file_name)
    assert load_table(run, runtime, device, profiles=tmp_path, threads=1) == exported.table


def test_a_modelled_table_serves_where_no_measured_one_is(exported: Planned, tmp_path: Path) -> None:
    """A device half as fast, known from ten measurements: planned, exported, and held against its budgets."""
    run, runtime, device = exported.run, exported.runtime, exported.device
    runtime.slowdown = 2.0
    table = profile_run(run, runtime, device, profiles=tmp_path, protocol=PROTOCOL, like=exported.table)

    served = load_table(run, runtime, device, profiles=tmp_path, threads=1)
    clear_plans(run)
    plan_run(run, served, exported.sensitivity, [2 * budget for budget in exported.budgets])
    export_run(run, device, [runtime])
    manifest, _ = verify_run(run, runtime, device, profiles=tmp_path, protocol=PROTOCOL)

    assert served == table and table.source == "modelled"
    assert all(plan.source == "modelled" for plan in run.plans())
    planned = [variant for variant in manifest.variants if variant.is_planned]
    assert planned and not any(variant.missed for variant in planned)
    exported.table.save(tmp_path / exported.table.file_name)
    assert load_table(run, runtime, device, profiles=tmp_path, threads=1) == exported.table


def test_a_table_of_another_version_is_named(planned: Planned) -> None:
    """The message lists what was found instead."""
    with pytest.raises(TableError, match=r"found .*fake-1\.0"):
        load_table(planned.run, FakeRuntime(version="9.9"), planned.device, profiles=planned.profiles, threads=1)


def test_a_run_folder_of_other_data_is_refused(trained: Run) -> None:
    """One folder, one run."""
    with pytest.raises(CheckpointError, match="other data or model"):
        create(trained.folder, data="digits", seed=5)
    assert open_run(trained.folder).facts == trained.facts


def test_only_run_folders_are_removed(tmp_path: Path) -> None:
    """--fresh must not delete what it did not make."""
    (tmp_path / "thesis.tex").write_text("")

    with pytest.raises(CheckpointError, match="not a run folder"):
        remove(tmp_path)
    remove(tmp_path / "nothing")
    assert (tmp_path / "thesis.tex").exists()


def test_augmentation_shifts_and_mirrors_whole_images() -> None:
    """Every result is a shifted, perhaps mirrored, copy; the same seed gives the same images."""
    images = torch.arange(2 * 1 * 6 * 6, dtype=torch.uint8).view(2, 1, 6, 6)

    first = augment(images, torch.Generator().manual_seed(1), shift=1, flip=True)
    again = augment(images, torch.Generator().manual_seed(1), shift=1, flip=True)

    assert torch.equal(first, again)
    for image, shifted in zip(images, first, strict=True):
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
        crops = [padded[:, t : t + 6, x : x + 6] for t in range(3) for x in range(3)]
        assert any(torch.equal(shifted, c) or torch.equal(shifted, c.flip(-1)) for c in crops)
