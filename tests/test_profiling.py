"""Profiling on a runtime with exact arithmetic times: what is measured once, kept, resumed and predicted."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
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
    governor,
    measure_networks,
    profile,
    random_ranks,
    rank_options,
    recalibrate,
)
from maestro_edge.profiling.edges import find_step
from maestro_edge.profiling.matching import assign, averaged
from maestro_edge.profiling.measuring import PROBES_A_RUN, Measured, pooled
from maestro_edge.profiling.options import covering_ranks
from maestro_edge.runtimes import MeasuringProtocol, Operator
from maestro_edge.runtimes.measuring import measuring_job
from maestro_edge.values import (
    DENSE,
    Alone,
    DeviceFacts,
    Estimate,
    LatencyTable,
    Layer,
    LayerSpec,
    Network,
    NetworkTiming,
    Timing,
)
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


def test_layers_of_one_shape_share_its_ranks_out() -> None:
    """Dense, all at their smallest, then few networks that together show each shape at each of its ranks."""
    wide, thin, once = (LayerSpec(kind="linear", in_channels=n, out_channels=n) for n in (256, 128, 64))
    layers = [
        *[(wide, (16, 32, 48, 64, 80))] * 2,
        *[(thin, (16, 32))] * 5,
        (once, (8, 16, 24, 32, 40)),
        (once, ()),
    ]
    calls = (Layer(name=str(i), spec=spec, ordered=True) for i, (spec, _) in enumerate(layers))
    network = Network(name="many", layers=tuple(calls))
    options = {str(i): ranks for i, (_, ranks) in enumerate(layers)}

    dense, smallest, *mixed = covering_ranks(network, options, seed=0)

    assert dense == {}
    assert smallest == {name: ranks[0] for name, ranks in options.items() if ranks}
    assert len(mixed) == 4  # the shape that is there once has four more ranks
    for each in layers[:-1]:
        alike = [str(i) for i, other in enumerate(layers) if other == each]
        assert {found[name] for found in (smallest, *mixed) for name in alike} >= set(each[1])
    assert all(found.keys() == smallest.keys() for found in mixed)
    assert all(found[name] in (*options[name], DENSE) for found in mixed for name in found)
    assert covering_ranks(network, options, seed=0) == [dense, smallest, *mixed]
    assert covering_ranks(network, options, seed=1) != [dense, smallest, *mixed]


def test_a_network_without_ranks_to_measure_has_a_table(tmp_path: Path) -> None:
    """No rank below break-even lies on a step; a fit takes three networks or more, here all dense ones."""
    model, runtime = order(nn.Sequential(nn.Flatten(), nn.Linear(64, 24))), FakeRuntime()
    runtime.rank_step = 32

    table = measured(model, tmp_path, runtime)

    assert [row.rank for row in table.rows] == [DENSE]
    assert table.predict_ms(trace(model, EXAMPLE), {}) > 0


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


def test_a_network_that_is_drawn_twice_is_one_file(ordered: nn.Module, tmp_path: Path) -> None:
    """A layer drawn dense is one that is not cut; each is timed all the same."""
    table, runtime = measured(ordered, tmp_path), FakeRuntime()

    networks = measure_networks(
        ordered, EXAMPLE, table, runtime, LocalDevice(), folder=tmp_path / "check", count=8, seed=7
    )

    cuts = {str({name: rank for name, rank in item.ranks.items() if rank != DENSE}) for item in networks}
    assert len(networks) == 9
    assert runtime.exports == len(cuts) < 9


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


def test_a_profile_of_many_layers_goes_on_with_those_that_are_left(tmp_path: Path) -> None:
    """More than are loaded together: the finished run of the first ones is not taken for one of the others."""
    layers = [(nn.Linear(64, width), nn.Linear(width, 64)) for width in range(66, 84, 2)]
    model, example = order(nn.Sequential(*(each for two in layers for each in two)).eval()), (torch.zeros(1, 64),)
    with pytest.raises(KeyboardInterrupt):
        profile(model, example, Failing(at=2), LocalDevice(), folder=tmp_path)

    table = profile(model, example, FakeRuntime(), LocalDevice(), folder=tmp_path)

    whole = profile(model, example, FakeRuntime(), LocalDevice(), folder=tmp_path / "fresh")
    assert len(whole.rows) > PROBES_A_RUN
    assert {(r.spec, r.rank, r.ms) for r in table.rows} == {(r.spec, r.rank, r.ms) for r in whole.rows}


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

    assert newer.exports and newer.measured
    assert threads.measured and not threads.exports, "files do not depend on the number of threads"


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


@pytest.mark.parametrize(
    ("files", "run_ms", "rounds"),
    [(5, 1.0, 30), (20, 20.0, 10), (20, 10.0, 17), (1, math.inf, 10)],
    ids=["fast", "slow", "between", "not known"],
)
def test_fast_files_get_more_rounds(files: int, run_ms: float, rounds: int) -> None:
    """A visit is an untimed run and two more, or `slice_ms`; ten seconds a run, thirty rounds at most."""
    assert MeasuringProtocol().paced(files, run_ms).rounds == rounds


class Counting(FakeRuntime):
    """Notes over how many rounds whole networks are measured."""

    rounds: list[int]

    def measure(self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol) -> dict[str, Timing]:
        if "{}" in paths:
            self.rounds.append(protocol.rounds)
        return super().measure(device, paths, protocol)


def test_the_first_run_tells_how_many_rounds_the_others_take(ordered: nn.Module, tmp_path: Path) -> None:
    runtime = Counting()
    runtime.rounds = []

    measured(ordered, tmp_path, runtime)

    assert runtime.rounds[0] == 10 and set(runtime.rounds[1:]) == {30}


def conditions(*, most: int = 4) -> Conditions:
    return Conditions(MeasuringProtocol(calm_runs=2, most_runs=most, drift_limit=0.05, pause_s=0))


def controls_kept(now: Conditions, runs: Iterator[tuple[float, bool]]) -> list[float]:
    return [kept.control_ms for kept in now.calm_runs(lambda index: Measured(*next(runs), {}))]


def test_runs_that_the_machine_disturbed_are_repeated_and_dropped() -> None:
    """A control 20 % slower than the fastest is no calm run; two that agree are enough."""
    runs = iter([(1.2, False), (1.0, False), (1.3, False), (1.02, False), (9.0, False)])

    assert controls_kept(conditions(), runs) == [1.0, 1.02]

    assert next(runs)[0] == 9.0, "no run beyond the second calm one"


def test_a_machine_that_stays_slower_is_measured_as_it_is() -> None:
    """When no run comes near what was fastest before, those that agree now have to do."""
    now = conditions()
    now.fastest_ms = 1.0

    assert controls_kept(now, iter([(1.5, False), (1.52, False), (1.9, False), (1.51, False)])) == [
        1.5,
        1.52,
        1.51,
    ]


@pytest.mark.parametrize(("fastest_ms", "slower"), [(1.0, True), (1.48, False)])
def test_a_machine_that_became_slower_says_so(fastest_ms: float, slower: bool) -> None:
    """Its times are as steady as before, so only the mark tells that they are not comparable."""
    now = conditions()
    now.fastest_ms = fastest_ms
    controls = iter([1.5, 1.9, 1.9, 1.9])

    def run(index: int) -> Measured:
        control_ms = next(controls)
        return Measured(control_ms, False, {"{}": [Operator("network", Timing.of([control_ms] * 2))]})

    (kept,) = now.calm_runs(run)

    assert kept.disturbed is kept.operators["{}"][0].timing.disturbed is slower


def test_runs_beside_other_programs_count_only_when_there_are_no_others() -> None:
    """A machine that others keep busy from beginning to end is as steady as a calm one: its load tells."""
    some = iter([(1.0, True), (1.01, False), (1.0, True), (1.02, False)])
    assert controls_kept(conditions(), some) == [1.01, 1.02]

    always = iter([(1.0, True)] * 4)
    assert controls_kept(conditions(), always) == [1.0] * 4


def test_pooled_timings_say_that_they_were_disturbed() -> None:
    """One disturbed part marks the whole."""
    calm, busy = Timing.of([1.0, 2.0]), Timing.of([3.0, 4.0], disturbed=True)

    assert pooled([calm, busy]).disturbed
    assert pooled([calm, busy]).n == 4
    assert not pooled([calm, calm]).disturbed


def test_a_lost_connection_loses_no_finished_run(ordered: nn.Module, tmp_path: Path) -> None:
    """Runs of whole networks that were finished before the cable was pulled are not repeated either."""
    failing = Failing(at=3)  # two runs of probes, one of whole networks
    with pytest.raises(KeyboardInterrupt):
        measured(ordered, tmp_path, failing)
    again = FakeRuntime()

    measured(ordered, tmp_path, again)

    assert again.measured.count("{}") == 1, "one run of whole networks was left"


class Noisy(FakeRuntime):
    """One probe never becomes steady."""

    def measure(self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol) -> dict[str, Timing]:
        found = super().measure(device, paths, protocol)
        return {
            name: Timing.of([timing.median_ms * factor for factor in (1, 2, 4, 8)])
            if name == "probe-0"
            else timing
            for name, timing in found.items()
        }


def test_rows_that_stay_noisy_are_refused(ordered: nn.Module, tmp_path: Path) -> None:
    """A row without a steady time would decide plans: the table is not made, and the row is named."""
    with pytest.raises(DeviceError, match=r"at rank .* varies by \d+ % of"):
        measured(ordered, tmp_path, Noisy())


def test_a_refused_session_is_measured_anew(ordered: nn.Module, tmp_path: Path) -> None:
    """On a calm device the same command then succeeds; the exported files are kept."""
    with pytest.raises(DeviceError, match="the exported files are kept"):
        measured(ordered, tmp_path, Noisy())
    calm = FakeRuntime()

    table = measured(ordered, tmp_path, calm)

    assert max(row.spread or 0.0 for row in table.rows) < 1
    assert calm.exports == 0


@given(step=st.sampled_from([4, 8, 12, 16, 32]), offset_ms=st.floats(0, 0.05), slope=st.floats(0.05, 1))
def test_the_steps_of_any_staircase_are_found(step: int, offset_ms: float, slope: float) -> None:
    """From a few ranks, the distance between the edges comes out; no edge, no step."""
    asked: list[int] = []

    def times_ms(ranks: Sequence[int]) -> dict[int, float]:
        asked.extend(ranks)
        return {rank: offset_ms + slope * math.ceil(rank / step) for rank in ranks}

    assert find_step(times_ms, expected=step) == step
    assert len(asked) == len(set(asked)) == (6 if step <= 16 else len(asked))
    assert find_step(times_ms, expected=10) == step
    assert find_step(lambda ranks: dict.fromkeys(ranks, 1.0), expected=16) is None


def test_a_rise_that_does_not_come_twice_is_no_step() -> None:
    """Noise at one of the ranks that a search meets."""
    slow = iter([{}, {25: 1.3, 41: 1.3}, *[{}] * 9])

    def times_ms(ranks: Sequence[int]) -> dict[int, float]:
        noise = next(slow)
        return {rank: noise.get(rank, 1.0) for rank in ranks}

    assert find_step(times_ms, expected=16) is None


def test_edges_that_are_no_staircase_are_no_step() -> None:
    """Two of them, after 18 and 32, are 14 apart; none is after 28 or 42."""

    def times_ms(ranks: Sequence[int]) -> dict[int, float]:
        return {rank: 1.0 + 0.2 * (rank > 18) + 0.2 * (rank > 32) for rank in ranks}

    assert find_step(times_ms, expected=16) is None


def test_a_staircase_that_dips_still_has_its_steps() -> None:
    """LiteRT: slow between multiples of 16, fast on some of them."""

    def times_ms(ranks: Sequence[int]) -> dict[int, float]:
        return {rank: math.ceil(rank / 16) - (0.3 if rank % 32 == 0 else 0.0) for rank in ranks}

    assert find_step(times_ms, expected=16) == find_step(times_ms, expected=10) == 16


def test_what_is_left_of_a_tile_may_take_longer_than_the_tile() -> None:
    """ExecuTorch on AVX2: rank 40 takes longer than 41; the edges are looked at alone, nothing is searched."""
    asked: list[int] = []

    def times_ms(ranks: Sequence[int]) -> dict[int, float]:
        asked.extend(ranks)
        known = {32: 0.0974, 33: 0.1187, 40: 0.1311, 41: 0.1145, 48: 0.1260, 49: 0.1513}
        return {rank: known[rank] for rank in ranks}

    assert find_step(times_ms, expected=16) == 16
    assert len(asked) == 6


def test_options_lie_on_the_steps_of_the_device(tmp_path: Path) -> None:
    """The fake's tiles are 16 channels: found by measuring, kept in the table, not searched twice."""
    model, runtime = order(nn.Sequential(nn.Linear(256, 256))), FakeRuntime()
    runtime.rank_step = 5

    table = profile(model, (torch.zeros(1, 256),), runtime, LocalDevice(), folder=tmp_path)
    again = FakeRuntime()
    profile(model, (torch.zeros(1, 256),), again, LocalDevice(), folder=tmp_path)

    assert table.rank_step == 16
    assert all(row.rank % 16 == 0 for row in table.rows if row.rank != DENSE)
    assert any(name.isdigit() for name in runtime.measured)
    assert not any(name.isdigit() for name in again.measured)


def test_networks_are_also_run_alone(ordered: nn.Module, tmp_path: Path) -> None:
    """Cold start and peak memory of the dense network and the mixed ones are in the table."""
    networks = measured(ordered, tmp_path).calibrations[0].networks

    alone = [item.alone for item in networks if item.alone is not None]
    assert networks[0].alone in alone and len(alone) == 4
    assert all(each.first_ms < each.load_ms and each.peak_kib == 1024 for each in alone)


def test_a_table_keeps_what_an_older_one_knows_of_other_networks(tmp_path: Path) -> None:
    """Rows of equal layers are the new ones; of another runtime version nothing is taken."""
    first = order(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 80)))
    second = order(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 96)))
    inputs, device = (torch.zeros(1, 64),), LocalDevice()
    old = profile(first, inputs, FakeRuntime(slowdown=2), device, folder=tmp_path)
    new = profile(second, inputs, FakeRuntime(), device, folder=tmp_path)

    both = new.over(old)

    equal, other = trace(first, inputs).layers
    assert both.row(equal.spec, DENSE) == new.row(equal.spec, DENSE)
    assert both.row(other.spec, DENSE) == old.row(other.spec, DENSE)
    assert both.calibration(trace(first, inputs)) == old.calibrations[0]
    assert new.over(old.model_copy(update={"runtime_version": "0.9"})) == new


def test_a_doubtful_table_says_so(ordered: nn.Module, tmp_path: Path) -> None:
    """A large leave-one-out error, and times taken beside other programs; nothing where all is well."""
    table, network = measured(ordered, tmp_path), trace(ordered, EXAMPLE)
    fitted = table.calibrations[0].model_copy(update={"loo_mape": 0.08})
    busy = table.rows[0].model_copy(update={"timing": table.rows[0].timing.model_copy(update={"disturbed": True})})

    found = table.model_copy(update={"calibrations": (fitted,), "rows": (busy,)}).doubts(network)

    assert table.doubts(network) == ()
    assert "within 8.0 % only" in found[0] and "busy" in found[1]


def test_a_table_of_an_emulated_device_is_marked(ordered: nn.Module, tmp_path: Path) -> None:
    """In its source, its file's name and its one doubt; no measured table takes a row of it."""
    runtime, device, network = FakeRuntime(), LocalDevice(), trace(ordered, EXAMPLE)

    table = profile(ordered, EXAMPLE, runtime, device, folder=tmp_path, emulated=True)

    real = measured(ordered, tmp_path)
    assert (table.source, table.file_name) == ("emulated", real.file_name.replace(".json", ".emulated.json"))
    assert LatencyTable.load(table.save(tmp_path / table.file_name)) == table
    (doubt,) = table.doubts(network)
    assert "its times say nothing of a device" in doubt
    bare = real.model_copy(update={"rows": (), "calibrations": ()})
    assert bare.over(table) == bare


def test_an_emulated_device_is_measured_as_little_as_can_be() -> None:
    """Threads, seed and what it may take stay as they were asked for; nothing is repeated for calm."""
    asked = MeasuringProtocol(threads=2, seed=3, timeout_s=7)

    protocol = asked.flow_only()

    assert (protocol.threads, protocol.seed, protocol.timeout_s) == (2, 3, 7)
    assert (protocol.repeats, protocol.calm_runs, protocol.most_runs) == (0, 1, 1)
    assert MeasuringProtocol.model_validate(protocol.model_dump()) == protocol


class Warm(LocalDevice):
    """A device of two big and two small cores that cools down by 2 degrees each time it is asked."""

    def __init__(self, temperature_c: float) -> None:
        super().__init__()
        self.temperature_c = temperature_c

    def facts(self) -> DeviceFacts:
        self.temperature_c -= 2
        update = {"temperature_c": self.temperature_c, "cores": 4, "core_mhz": (1800, 1800, 2400, 2400)}
        return super().facts().model_copy(update=update)


def test_a_warm_device_cools_down_and_runs_on_its_big_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked until it is cool enough; threads are bound to the fastest cores if they fit there."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    protocol = MeasuringProtocol(cool_to_c=40, threads=2)

    job = measuring_job(device := Warm(45), protocol)

    assert device.temperature_c <= 40
    assert job["cores"] == [2, 3] and job["threads"] == 2
    assert measuring_job(Warm(30), MeasuringProtocol(threads=3))["cores"] == []
    with pytest.raises(DeviceError, match=r"still \d+ °C after 1e-06 s, wanted 20 °C"):
        measuring_job(Warm(90), MeasuringProtocol(cool_to_c=20, cool_s=1e-6))


class Governed(LocalDevice):
    """Remembers the governors that are written; `locked` refuses."""

    def __init__(self, *, locked: bool = False) -> None:
        super().__init__()
        self.governors, self.locked = {"policy0": "ondemand", "policy4": "schedutil"}, locked

    def run(self, argv: Sequence[str], *, timeout_s: float) -> str:
        if len(argv) == 3:
            return "".join(f"{policy} {name}\n" for policy, name in self.governors.items())
        if self.locked:
            raise DeviceError("permission denied")
        self.governors[argv[-2]] = argv[-1]
        return ""


def test_a_governor_is_put_back_whatever_happens() -> None:
    """Every policy gets its own governor again, also after a failure; a locked device says what to do."""
    device = Governed()
    with pytest.raises(KeyboardInterrupt), governor(device, "performance"):
        assert set(device.governors.values()) == {"performance"}
        raise KeyboardInterrupt
    assert device.governors == {"policy0": "ondemand", "policy4": "schedutil"}

    with pytest.raises(DeviceError, match="cannot set governor 'performance' of policy0"):
        governor(Governed(locked=True), "performance").__enter__()


def operator(kind: str, ms: float, *weights: int) -> Operator:
    return Operator(kind, Timing.of([ms, ms]), weights or None)


def test_kernels_go_to_their_layers() -> None:
    """By the shapes of their weights where a converter swapped branches, by order where shapes are unknown."""
    wide = LayerSpec(kind="linear", in_channels=64, out_channels=96)
    narrow = LayerSpec(kind="linear", in_channels=64, out_channels=32)
    swapped = [operator("linear", 3, 32, 64), operator("linear", 1, 16, 64), operator("linear", 2, 96, 16)]

    found = assign([(wide, 16), (narrow, DENSE)], swapped)
    by_order = assign([(wide, 16), (narrow, DENSE)], [operator("linear", ms) for ms in (1.0, 2.0, 3.0)])

    assert found is not None and by_order is not None
    assert [(key, timing.median_ms) for key, timing in found] == [((wide, 16), 3.0), ((narrow, DENSE), 3.0)]
    assert [timing.median_ms for _, timing in by_order] == [3.0, 3.0]


def test_equal_layers_whose_kernels_alternate_get_their_mean() -> None:
    """Queries and keys run as q.0 k.0 q.1 k.1: however they are paired, each layer takes q.0 + q.1 on average."""
    spec = LayerSpec(kind="linear", in_channels=64, out_channels=64)
    alternating = [operator("linear", ms) for ms in (1.0, 1.0, 3.0, 3.0)]

    found = assign([(spec, 16), (spec, 16)], alternating)

    assert found is not None
    assert {key: timing.median_ms for key, timing in averaged(found).items()} == {(spec, 16): 4.0}


@pytest.mark.parametrize(
    "operators",
    [
        [operator("linear", 1)],
        [operator("conv2d", 1), operator("linear", 1)],
        [operator("linear", 1, 16, 64), operator("linear", 1, 95, 16)],
    ],
)
def test_kernels_that_fit_no_layer_are_not_guessed(operators: list[Operator]) -> None:
    """A kernel too few, of another kind or another shape: the caller measures probes instead."""
    assert assign([(LayerSpec(kind="linear", in_channels=64, out_channels=96), 16)], operators) is None


def other_layers() -> nn.Module:
    """Ordered, with shapes of its own."""
    torch.manual_seed(0)
    widths = (1, 24, 40, 56, 72, 88, 104)
    convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
    return order(nn.Sequential(*convs, nn.Flatten(), nn.Linear(104 * 64, 10)).eval())


@pytest.mark.parametrize("other", [False, True])
def test_a_table_like_another_takes_ten_measurements(tmp_path: Path, other: bool) -> None:
    """On a device 1.7 times as slow, of the same network or of one whose layers nobody measured."""
    here = measured(other_layers(), tmp_path / "here")
    unseen = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Conv2d(32, 48, 3), nn.Conv2d(48, 80, 3))
    model = order(unseen.eval()) if other else other_layers()
    slow, network = FakeRuntime(slowdown=1.7), trace(model, EXAMPLE)

    table = profile(model, EXAMPLE, slow, LocalDevice(), folder=tmp_path / "there", like=here)

    real = measured(model, tmp_path / "real", FakeRuntime(slowdown=1.7))
    assert len(set(slow.measured)) == 7 + 3
    assert sum(row.method == "probe" for row in table.rows) == 7
    assert {(row.spec, row.rank) for row in table.rows} == {(row.spec, row.rank) for row in real.rows}
    assert (table.source, table.file_name) == ("modelled", real.file_name.replace(".json", ".modelled.json"))
    assert "are modelled: trust 'verify' alone" in table.doubts(network)[-1]
    errors = [abs(row.ms / real.row(row.spec, row.rank).ms - 1) for row in table.rows]
    assert max(errors) < (0.5 if other else 0.01)
    coverage = {round(row.timing.coverage, 6) for row in table.rows if isinstance(row.timing, Estimate)}
    assert coverage == {0.7 if other else 0.8}
    dense_ms = real.predict_ms(network, {})
    assert table.predict_ms(network, {}) == pytest.approx(dense_ms, rel=0.1 if other else 0.01)


def test_a_table_is_like_a_measured_one_of_its_kind(ordered: nn.Module, tmp_path: Path) -> None:
    """What was modelled or emulated teaches nothing, nor does another runtime or precision."""
    here, runtime = measured(ordered, tmp_path), FakeRuntime()

    def like(reference: LatencyTable, *, gauge: bool = False, emulated: bool = False) -> LatencyTable:
        device = LocalDevice()
        return profile(
            ordered, EXAMPLE, runtime, device, folder=tmp_path, like=reference, gauge=gauge, emulated=emulated
        )

    for source in ("modelled", "emulated"):
        with pytest.raises(TableError, match=f"was {source}: give a measured table"):
            like(here.model_copy(update={"source": source}))
    with pytest.raises(TableError, match="is of other in fp32, not of fake in fp32"):
        like(here.model_copy(update={"runtime": "other"}))
    with pytest.raises(TableError, match="in int8-static, not of fake in fp32"):
        like(here.model_copy(update={"precision": "int8-static"}))
    with pytest.raises(TableError, match="no gauge forms"):
        like(here, gauge=True)
    with pytest.raises(TableError, match="emulated device say nothing"):
        like(here, emulated=True)


def test_a_table_like_another_goes_on_with_its_own_networks_alone(tmp_path: Path) -> None:
    """Interrupted when all was measured, then begun anew from a table whose ranks lie elsewhere."""

    class Lost(FakeRuntime):
        def measure_alone(self, device: Device, path: Path, protocol: MeasuringProtocol) -> Alone:
            raise DeviceError("the cable was pulled")

    model, here = other_layers(), measured(other_layers(), tmp_path / "here")

    def like(runtime: FakeRuntime, reference: LatencyTable) -> LatencyTable:
        return profile(model, EXAMPLE, runtime, LocalDevice(), folder=tmp_path / "there", like=reference)

    with pytest.raises(DeviceError, match="the cable was pulled"):
        like(Lost(), here)
    fine = like(FakeRuntime(), here.model_copy(update={"rank_step": 8}))
    again = FakeRuntime()
    table = like(again, here)

    assert {row.rank for row in fine.rows} != {row.rank for row in table.rows}
    assert again.measured == []  # all was kept, and nothing of it was lost to the other
