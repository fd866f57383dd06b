"""Predicting what was not measured: exact laws are found, intervals hold, and nothing modelled looks measured."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from maestro_edge.errors import TableError
from maestro_edge.profiling import NetworkPredictor, Predictor, Transfer, complete
from maestro_edge.profiling.calibration import fit_kinds, fit_line, kinds_left_out_ms, left_out_ms
from maestro_edge.profiling.features import kind_of, layer_features
from maestro_edge.profiling.predictor import conformal_quantile
from maestro_edge.values import DENSE, DeviceFacts, Estimate, LatencyRow, LatencyTable, LayerSpec, Rank, Timing

ROOT = Path(__file__).parents[1]
FACTS = DeviceFacts(name="board", soc="SoC", arch="aarch64", cores=4, os="Linux")


def conv(inputs: int, outputs: int, size: int, kernel: int = 3) -> LayerSpec:
    pad = (kernel // 2, kernel // 2)
    return LayerSpec(
        kind="conv2d",
        in_channels=inputs,
        out_channels=outputs,
        kernel=(kernel, kernel),
        padding=pad,
        input_size=(size, size),
    )


def staircase_ms(spec: LayerSpec, rank: Rank = DENSE) -> float:
    """A device that computes 16 channels at a time, and starts a kernel in 2 µs."""
    return sum(
        0.002 + 1e-8 * 16 * math.ceil(part.out_channels / 16) * part.fan_in * math.prod(part.output_size)
        for part in spec.parts(rank)
    )


SPECS = [
    conv(inputs, outputs, size, kernel)
    for inputs, outputs, size, kernel in itertools.product((8, 24, 64, 96), (16, 48, 80), (7, 14, 28), (1, 3))
]


def table(specs: list[LayerSpec], ranks: tuple[Rank, ...] = (DENSE,)) -> LatencyTable:
    rows = [
        LatencyRow(spec=s, rank=r, method="probe", timing=Timing.of([staircase_ms(s, r)] * 3))
        for s in specs
        for r in ranks
    ]
    return LatencyTable(
        source="measured",
        device=FACTS,
        runtime="fake",
        runtime_version="1.0",
        precision="fp32",
        threads=1,
        created="2026-01-01",
        rows=tuple(rows),
    )


@pytest.mark.parametrize("rank", [DENSE, 4, 8])
@pytest.mark.parametrize(
    "spec",
    [
        conv(16, 32, 8),
        LayerSpec(kind="linear", in_channels=64, out_channels=32, input_size=(5,)),
        LayerSpec(kind="conv1d", in_channels=16, out_channels=32, kernel=(3, 1), padding=(1, 0), input_size=(9,)),
        LayerSpec(kind="conv2d", in_channels=32, out_channels=32, kernel=(3, 3), groups=2, input_size=(8, 8)),
        conv(16, 32, 8).model_copy(update={"factors": "spatial"}),
    ],
    ids=str,
)
def test_the_work_that_is_seen_is_the_work_that_is_done(spec: LayerSpec, rank: Rank) -> None:
    """MACs of the parts at a rank, as the plan counts them."""
    found = layer_features(spec, rank)

    assert found["macs"] == spec.macs(rank)
    assert min(found.values()) >= 0


def test_layers_never_measured_are_estimated_with_an_interval_that_holds() -> None:
    """Every third shape is held back: four in five of its times lie in a 90 % interval, and the median is near."""
    known = [spec for index, spec in enumerate(SPECS) if index % 3]
    unseen = [spec for index, spec in enumerate(SPECS) if not index % 3]

    found = complete(table(known), [(spec, DENSE) for spec in unseen])

    rows = [found.row(spec, DENSE) for spec in unseen]
    errors = [abs(row.ms / staircase_ms(row.spec) - 1) for row in rows]
    held = [
        row.timing.low_ms <= staircase_ms(row.spec) <= row.timing.high_ms
        for row in rows
        if isinstance(row.timing, Estimate)
    ]
    assert len(held) == len(unseen)
    assert np.median(errors) < 0.1
    assert np.mean(held) >= 0.8


def test_modelled_rows_are_marked_in_the_row_the_table_and_the_files_name(tmp_path: Path) -> None:
    """A measured table of the same device is neither overwritten nor taken for it."""
    measured = table(SPECS[:30])

    found = complete(measured, [(SPECS[0], DENSE), (SPECS[40], DENSE), (SPECS[40], DENSE)])

    assert [row.method for row in found.rows] == ["probe"] * 30 + ["modelled"]
    assert (found.source, found.file_name) == ("modelled", "board.fake-1.0.fp32-t1.modelled.json")
    assert LatencyTable.load(found.save(tmp_path / found.file_name)) == found
    assert complete(measured, [(SPECS[0], DENSE)]) is measured


def test_modelled_rows_never_train_a_predictor() -> None:
    """Completing twice is completing once."""
    once = complete(table(SPECS[:30]), [(SPECS[40], DENSE), (SPECS[50], DENSE)])

    twice = complete(complete(table(SPECS[:30]), [(SPECS[40], DENSE)]), [(SPECS[50], DENSE)])

    assert [row.ms for row in twice.rows] == pytest.approx([row.ms for row in once.rows])


def test_a_measured_table_cannot_hold_a_modelled_row() -> None:
    """Neither by its source nor by the method of the row."""
    found = complete(table(SPECS[:30]), [(SPECS[40], DENSE)])
    estimate = found.rows[-1].timing

    with pytest.raises(ValidationError, match="modelled, not measured"):
        LatencyTable.model_validate({**found.model_dump(), "source": "measured"})
    with pytest.raises(ValidationError, match="probe cannot hold a Estimate"):
        LatencyRow(spec=SPECS[0], rank=DENSE, method="probe", timing=estimate)


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.json")), ids=lambda path: path.stem)
def test_committed_tables_load_and_keep_their_names(path: Path) -> None:
    """Rows with samples are as they were."""
    found = LatencyTable.load(path)

    assert (found.source, found.file_name) == ("measured", path.name)


def test_what_cannot_be_known_is_refused() -> None:
    """A kind that no row has, an emulator's times, too few rows, and times of nothing."""
    linear = LayerSpec(kind="linear", in_channels=8, out_channels=8)
    features = [layer_features(spec, DENSE) for spec in SPECS[:30]]
    names = [str(spec) for spec in SPECS[:30]]

    with pytest.raises(TableError, match="no row has 'kind:linear'"):
        complete(table(SPECS[:30]), [(linear, DENSE)])
    with pytest.raises(TableError, match="was emulated: nothing can be learned"):
        complete(table(SPECS[:30]).model_copy(update={"source": "emulated"}), [(SPECS[40], DENSE)])
    with pytest.raises(TableError, match="5 rows of 5 groups do not train"):
        complete(table(SPECS[:5]), [(SPECS[40], DENSE)])
    with pytest.raises(TableError, match="0 ms or less"):
        Predictor.fit(features, [0.0] * 30, names)
    with pytest.raises(TableError, match="do not carry an interval of 99 %"):
        Predictor.fit(features, [1.0 + n for n in range(30)], names, coverage=0.99)


def test_the_conformal_quantile_counts_the_new_one_too() -> None:
    """Of nine scores, the ninth covers nine tenths; eight do not reach so far."""
    scores = np.arange(1.0, 10.0)

    assert conformal_quantile(scores, 0.9) == 9
    assert conformal_quantile(scores, 0.5) == 5
    with pytest.raises(TableError, match="8 measurements"):
        conformal_quantile(scores[:8], 0.9)


def test_a_network_is_the_line_through_the_sum_of_its_operators() -> None:
    """An overhead of a tenth and 0.3 ms is found from networks, and holds for one never seen."""
    draw = np.random.default_rng(0)
    picks = {f"net{n}": draw.integers(0, len(SPECS), 6 + n % 5) for n in range(24)}
    operators = {
        name: [(layer_features(SPECS[i], DENSE), staircase_ms(SPECS[i])) for i in chosen]
        for name, chosen in picks.items()
    }
    whole = {name: 1.1 * sum(ms for _, ms in rows) + 0.3 for name, rows in operators.items()}
    unseen = operators.pop("net3")

    found = NetworkPredictor.fit(operators, whole).predict([features for features, _ in unseen])

    assert found.ms == pytest.approx(whole["net3"], rel=0.1)
    assert found.low_ms <= whole["net3"] <= found.high_ms


def test_an_operator_larger_than_any_that_was_measured_costs_what_its_work_does() -> None:
    """Eight and sixteen times the work of the largest: trees alone would stay at what they have seen."""
    known = [spec for spec in SPECS if spec.input_size != (28, 28)]
    model = Predictor.fit(
        [layer_features(spec, DENSE) for spec in known], [staircase_ms(s) for s in known], [str(s) for s in known]
    )
    large = [conv(96, 80, 40), conv(96, 80, 56)]
    assert staircase_ms(large[0]) > 8 * max(map(staircase_ms, known))

    found = model.predict([layer_features(spec, DENSE) for spec in large])

    for spec, estimate in zip(large, found, strict=True):
        assert estimate.ms == pytest.approx(staircase_ms(spec), rel=0.15)


@pytest.mark.parametrize("networks", [4, 40])
def test_every_kind_of_operator_has_a_slope_of_its_own(networks: int) -> None:
    """As far as networks tell them apart: of few, kinds stay near the line of all."""
    draw = np.random.default_rng(3)
    summed = draw.uniform(1, 5, (networks, 3))
    slopes, intercept_ms = np.array([1.0, 2.5, 1.2]), 0.7
    measured = summed @ slopes + intercept_ms

    found, _ = fit_kinds(summed, measured)
    left_out = kinds_left_out_ms(summed, measured)
    line, _ = fit_line(summed.sum(1), measured)

    if networks > 4:
        assert found == pytest.approx(slopes, rel=0.15)
        assert np.abs(left_out / measured - 1).mean() < 0.02
        assert np.abs(left_out_ms(summed.sum(1), measured) / measured - 1).mean() > 0.08
    assert np.abs(found - line).max() <= np.abs(slopes - line).max() + 0.05


def test_the_slope_of_one_kind_is_the_lines() -> None:
    draw = np.random.default_rng(4)
    summed = draw.uniform(1, 5, 9)
    measured = 1.3 * summed + 0.2 + draw.normal(0, 0.1, 9)

    slopes, intercept_ms = fit_kinds(summed[:, None], measured)

    assert (slopes[0], intercept_ms) == pytest.approx(fit_line(summed, measured))


def test_operators_with_a_stride_are_of_a_kind_of_their_own() -> None:
    strided = conv(8, 16, 14).model_copy(update={"stride": (2, 2)})

    kinds = [kind_of(layer_features(spec, DENSE)) for spec in (conv(8, 16, 14), strided)]

    assert kinds == ["kind:conv2d", "kind:conv2d, strided"]


def test_ten_measurements_carry_a_law_to_another_device() -> None:
    """A device half as fast, and slower still on what gains little from threads here."""
    draw = np.random.default_rng(1)
    one, four = np.exp(draw.normal(2, 1, 60)), np.exp(draw.normal(0, 0.2, 60))
    references = np.stack([one, one / four], axis=1)
    there = 2 * one * four**0.3

    model = Transfer.fit(references[:10].tolist(), there[:10].tolist())

    found = model.predict(references[10:].tolist())
    ratios = np.array([estimate.ms for estimate in found]) / there[10:]
    assert np.abs(ratios - 1).max() < 0.1
    assert all(estimate.low_ms < estimate.ms < estimate.high_ms for estimate in found)


def test_one_time_of_ten_that_went_wrong_is_not_followed() -> None:
    """Half as fast throughout, but one measurement says 8 times; the interval still tells of it."""
    draw = np.random.default_rng(2)
    one, four = np.exp(draw.normal(2, 1, 40)), np.exp(draw.normal(0, 0.2, 40))
    references = np.stack([one, one / four], axis=1)
    there = 2 * one * np.exp(draw.normal(0, 0.02, 40))
    measured = there[:10].copy()
    measured[4] *= 4

    model = Transfer.fit(references[:10].tolist(), measured.tolist(), coverage=0.9)

    ratios = np.array([estimate.ms for estimate in model.predict(references[10:].tolist())]) / there[10:]
    assert np.abs(ratios - 1).max() < 0.15
    assert model.width > np.log(3)


def test_one_reference_keeps_the_order_of_the_items() -> None:
    """Whatever the ten measurements say."""
    model = Transfer.fit([[float(n)] for n in range(1, 11)], [3.0, 2.0, 6.0, 5.0, 9.0, 8.0, 12.0, 9.0, 15.0, 14.0])

    found = [estimate.ms for estimate in model.predict([[1.0], [2.5], [7.0], [40.0]])]

    assert found == sorted(found)


def test_a_transfer_refuses_what_is_no_time() -> None:
    """Logarithms of nothing are nothing."""
    with pytest.raises(TableError, match="cannot be transferred"):
        Transfer.fit([[1.0]] * 10, [0.0] * 10)
    with pytest.raises(TableError, match="3 measurements do not carry"):
        Transfer.fit([[1.0], [2.0], [3.0]], [1.0, 2.0, 3.0])
