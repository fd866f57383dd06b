"""Profiling on a runtime with exact arithmetic times: what is measured once, kept, resumed and predicted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from maestro_edge.devices import Device, LocalDevice
from maestro_edge.errors import DeviceError, TableError
from maestro_edge.ordered import order, trace
from maestro_edge.profiling import (
    Conditions,
    fit,
    measure_networks,
    profile,
    random_ranks,
    rank_options,
    recalibrate,
)
from maestro_edge.profiling.options import uniform_ranks
from maestro_edge.runtimes import MeasuringProtocol
from maestro_edge.values import DENSE, LatencyTable, LayerSpec, Network, NetworkTiming, Timing
from tests.conftest import REST_MS, FakeRuntime, layer_ms

EXAMPLE = (torch.zeros(1, 1, 8, 8),)


@pytest.fixture
def ordered(tiny: nn.Module) -> nn.Module:
    return order(tiny)


def measured(model: nn.Module, folder: Path, runtime: FakeRuntime | None = None) -> LatencyTable:
    return profile(model, EXAMPLE, runtime or FakeRuntime(), LocalDevice(), folder=folder)


@given(
    out=st.integers(1, 300),
    inputs=st.integers(1, 300),
    step=st.sampled_from([1, 8, 16, 32]),
    limit=st.integers(2, 8),
)
def test_rank_options_lie_on_steps_below_break_even(out: int, inputs: int, step: int, limit: int) -> None:
    """Ascending multiples of the step, never at or above break-even, at most `limit`."""
    spec = LayerSpec(kind="linear", in_channels=inputs, out_channels=out)

    ranks = rank_options(spec, step=step, limit=limit)

    assert list(ranks) == sorted(set(ranks)) and len(ranks) <= limit
    assert all(rank % step == 0 and rank < spec.break_even_rank for rank in ranks)
    assert all(spec.params(rank) < spec.params() for rank in ranks)


def test_uniform_sets_hold_every_option_of_every_layer() -> None:
    """The first set is dense; together they show each layer at each of its ranks."""
    options = {"a": (16, 32, 48), "b": (16,), "c": ()}

    sets = uniform_ranks(options)

    assert sets[0] == {}
    assert {ranks["a"] for ranks in sets[1:]} == {16, 32, 48}
    assert all(ranks["b"] == 16 and "c" not in ranks for ranks in sets[1:])


def test_random_sets_depend_on_the_seed_alone() -> None:
    """The same seed draws the same networks; another seed others."""
    options = {"a": (16, 32, 48), "b": (16, 64)}

    assert random_ranks(options, 5, seed=3) == random_ranks(options, 5, seed=3)
    assert random_ranks(options, 5, seed=3) != random_ranks(options, 5, seed=4)


def test_rows_are_the_times_of_the_layers(ordered: nn.Module, tmp_path: Path) -> None:
    """Dense rows are exact, every ordered spec has its ranks, and the rest is what lies outside."""
    table = measured(ordered, tmp_path)

    network = trace(ordered, EXAMPLE)
    for layer in network.layers:
        assert table.row(layer.spec, DENSE).ms == pytest.approx(layer_ms(layer.spec))
    assert table.ranks(network.ordered[-1].spec) == (16, 32, DENSE)
    assert table.calibrations[0].rest_ms == pytest.approx(REST_MS)
    assert table.source == "measured"


def test_prediction_is_exact_where_times_add_up(ordered: nn.Module, tmp_path: Path) -> None:
    """On additive times networks never used for the fit are predicted within rounding."""
    table = measured(ordered, tmp_path)

    networks = measure_networks(
        ordered, EXAMPLE, table, FakeRuntime(), LocalDevice(), folder=tmp_path, count=6, seed=7
    )

    calibration = table.calibrations[0]
    for item in networks:
        assert calibration.whole_ms(item.layers_ms) == pytest.approx(item.timing.median_ms, rel=1e-6)
    assert calibration.loo_mape < 1e-6


class Failing(FakeRuntime):
    """Loses its connection at the n-th measurement."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def measure(self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol) -> dict[str, Timing]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().measure(device, paths, protocol)


def test_an_interrupted_profile_goes_on_where_it_stopped(ordered: nn.Module, tmp_path: Path) -> None:
    """After Ctrl-C no file is exported again and no finished row is measured again; the table is the same."""
    failing = Failing(at=2)  # after the two calm runs of the probes
    with pytest.raises(KeyboardInterrupt):
        measured(ordered, tmp_path, failing)
    again = FakeRuntime()

    table = measured(ordered, tmp_path, again)

    control = "{}"
    assert set(failing.measured) - {control}
    assert not (set(failing.measured) & set(again.measured)) - {control}
    assert again.exports == 0
    whole = measured(ordered, tmp_path / "fresh")
    assert {(r.spec, r.rank, r.ms) for r in table.rows} == {(r.spec, r.rank, r.ms) for r in whole.rows}


def test_another_version_or_protocol_is_measured_anew(ordered: nn.Module, tmp_path: Path) -> None:
    """Rows of another runtime version or another number of threads never count."""
    measured(ordered, tmp_path)
    newer, threads = FakeRuntime(version="2.0"), FakeRuntime()

    measured(ordered, tmp_path, newer)
    profile(ordered, EXAMPLE, threads, LocalDevice(), folder=tmp_path, protocol=MeasuringProtocol(threads=2))

    assert newer.exports and threads.exports


def test_equal_specs_are_measured_once(tmp_path: Path) -> None:
    """Three equal Linear layers need one probe per rank."""
    model = order(nn.Sequential(*(nn.Linear(64, 64) for _ in range(3))))
    runtime = FakeRuntime()

    table = profile(model, (torch.zeros(1, 64),), runtime, LocalDevice(), folder=tmp_path)

    assert [row.rank for row in table.rows].count(16) == 1
    assert len({name for name in runtime.measured if name.startswith("probe")}) == len(table.rows) == 2


def timings(*pairs: tuple[float, float]) -> list[NetworkTiming]:
    return [NetworkTiming(ranks={}, layers_ms=s, timing=Timing.of([m, m])) for s, m in pairs]


def test_the_fit_finds_slope_and_intercept() -> None:
    """An exact affine relation comes back exactly, with no leave-one-out error."""
    network = Network(name="n", layers=())

    found = fit(network, timings((1, 1.5), (2, 2.6), (4, 4.8), (8, 9.2)), rest_ms=0.2)

    assert found.slope == pytest.approx(1.1)
    assert found.intercept_ms == pytest.approx(1.5 - 1.1 * 1.2)
    assert found.loo_mape == pytest.approx(0, abs=1e-9)


def test_networks_of_one_size_correct_the_scale_alone() -> None:
    """Nearly equal sums cannot tell a slope from an intercept: no wild extrapolation."""
    network = Network(name="n", layers=())

    found = fit(network, timings((2.0, 2.2), (2.01, 2.1), (2.02, 2.3)), rest_ms=0.0)

    assert found.intercept_ms == 0
    assert 1.0 < found.slope < 1.2


def test_two_networks_are_too_few() -> None:
    """A fit of two parameters on two points would always look perfect."""
    with pytest.raises(TableError, match="2 whole networks"):
        fit(Network(name="n", layers=()), timings((1, 1), (2, 2)), rest_ms=0.0)


def test_recalibration_moves_predictions_towards_new_measurements(ordered: nn.Module, tmp_path: Path) -> None:
    """On a device that became 1.5 times slower, predictions rise after recalibrating."""
    table = measured(ordered, tmp_path)
    network = trace(ordered, EXAMPLE)
    before = table.predict_ms(network, {})
    slow = [
        item.model_copy(update={"timing": Timing.of([1.5 * item.timing.median_ms] * 2)})
        for item in table.calibrations[0].networks
    ]

    after = recalibrate(table, network, slow).predict_ms(network, {})

    assert before < after <= 1.5 * before + 1e-9


def test_a_local_device_runs_pushes_and_pulls(tmp_path: Path) -> None:
    """Files go in and out of a private folder that is gone after close."""
    device = LocalDevice()
    source = tmp_path / "name with 'quotes'; $(and) spaces.txt"
    source.write_text("content")

    remote = device.push(source, "file.txt")
    printed = device.run([device.python, "-c", "print(open('file.txt').read())"], timeout_s=20)
    device.pull("file.txt", tmp_path / "back.txt")
    device.close()

    assert printed.strip() == "content"
    assert (tmp_path / "back.txt").read_text() == "content"
    assert not Path(remote).exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no-such-program-here"], "is not installed"),
        (["-c", "import sys; sys.exit('boom')"], "ended with code 1: boom"),
        (["-c", "import time; time.sleep(30)"], "took longer than 0.5 s"),
    ],
)
def test_a_failed_command_is_one_line(argv: list[str], message: str) -> None:
    """Missing, failing and hanging programs are told apart."""
    device = LocalDevice()
    command = argv if argv[0] != "-c" else [device.python, *argv]

    with pytest.raises(DeviceError, match=message) as caught:
        device.run(command, timeout_s=0.5 if "sleep" in argv[-1] else 20)

    assert "\n" not in str(caught.value)
    device.close()


def conditions(*, most: int = 4) -> Conditions:
    return Conditions(MeasuringProtocol(calm_runs=2, most_runs=most, drift_limit=0.05, pause_s=0))


def test_runs_that_the_machine_disturbed_are_repeated_and_dropped() -> None:
    """A control 20 % slower than the fastest is no calm run; two that agree are enough."""
    controls = iter([1.2, 1.0, 1.3, 1.02, 9.0])

    kept = conditions().calm_runs(lambda: (ms := next(controls), ms))

    assert kept == [1.0, 1.02]
    assert next(controls) == 9.0, "no run beyond the second calm one"


def test_a_machine_that_stays_slower_is_measured_as_it_is() -> None:
    """When no run comes near what was fastest before, those that agree now have to do."""
    controls = iter([1.5, 1.52, 1.9, 1.51])
    now = conditions()
    now.fastest_ms = 1.0

    kept = now.calm_runs(lambda: (ms := next(controls), ms))

    assert kept == [1.5, 1.52, 1.51]
