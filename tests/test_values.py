"""The values between the stages: what is saved comes back, what is damaged is refused, numbers are exact."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maestro_edge.errors import BudgetError, DataError, TableError
from maestro_edge.values import (
    DENSE,
    UNITS,
    Budget,
    Calibration,
    Cut,
    Delegation,
    DeviceFacts,
    InputSpec,
    LatencyRow,
    LatencyTable,
    Layer,
    LayerPlan,
    LayerSpec,
    Manifest,
    MeasuredMs,
    Network,
    NetworkTiming,
    Promise,
    Rank,
    RankPlan,
    Sensitivity,
    Timing,
    Variant,
    check_budget,
    write_atomically,
)

Saved: TypeAlias = LatencyTable | RankPlan | Sensitivity | Manifest

# Strategies: every field of every saved value, over all that its type allows.

NAMES = st.text(max_size=12)
COUNTS = st.integers(1, 10**9)
SMALL = st.integers(1, 512)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NOT_NEGATIVE = st.floats(min_value=0, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
SHARES = st.floats(min_value=0, max_value=1)
RANKS: st.SearchStrategy[Rank] = COUNTS | st.just(DENSE)
RANKS_BY_NAME = st.dictionaries(NAMES, RANKS, max_size=3)
PAIRS = st.tuples(SMALL, SMALL)


def tuples(items: st.SearchStrategy[Any], most: int = 3, *, least: int = 0) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, min_size=least, max_size=most).map(tuple)


SPECS = st.builds(
    LayerSpec,
    kind=st.sampled_from(["linear", "conv2d"]),
    in_channels=SMALL,
    out_channels=SMALL,
    kernel=PAIRS,
    stride=PAIRS,
    padding=PAIRS,
    dilation=PAIRS,
    groups=SMALL,
    bias=st.booleans(),
    activation=st.sampled_from(["none", "relu"]),
    input_size=tuples(SMALL),
    batch=SMALL,
)
TIMINGS = st.builds(
    Timing,
    n=COUNTS,
    median_ms=NOT_NEGATIVE,
    p90_ms=NOT_NEGATIVE,
    spread=NOT_NEGATIVE,
    samples_ms=tuples(FINITE),
)
DEVICES = st.builds(
    DeviceFacts,
    name=NAMES,
    soc=NAMES,
    arch=NAMES,
    cores=COUNTS,
    os=NAMES,
    memory_gib=st.none() | FINITE,
    governor=st.none() | NAMES,
    temperature_c=st.none() | FINITE,
)
TABLES = st.builds(
    LatencyTable,
    source=st.sampled_from(["measured", "imported", "modelled", "emulated"]),
    device=DEVICES,
    runtime=NAMES,
    runtime_version=NAMES,
    precision=st.sampled_from(["fp32", "int8-dynamic", "int8-static"]),
    threads=COUNTS,
    created=NAMES,
    rows=tuples(
        st.builds(
            LatencyRow, spec=SPECS, rank=RANKS, method=st.sampled_from(["in-model", "probe"]), timing=TIMINGS
        )
    ),
    calibrations=tuples(
        st.builds(
            Calibration,
            network=NAMES,
            rest_ms=NOT_NEGATIVE,
            slope=POSITIVE,
            intercept_ms=FINITE,
            loo_mape=NOT_NEGATIVE,
            networks=tuples(st.builds(NetworkTiming, ranks=RANKS_BY_NAME, layers_ms=FINITE, timing=TIMINGS), 2),
        ),
        2,
    ),
)
BUDGETS = st.builds(Budget, quantity=st.sampled_from(list(UNITS)), limit=POSITIVE)
PROMISES = st.builds(Promise, budget=BUDGETS, planned=FINITE, predicted=FINITE, dense=FINITE)
PLANS = st.builds(
    RankPlan,
    network=NAMES,
    network_name=NAMES,
    device=NAMES,
    runtime=NAMES,
    runtime_version=NAMES,
    precision=st.sampled_from(["fp32", "int8-dynamic", "int8-static"]),
    threads=COUNTS,
    promises=tuples(PROMISES, 2, least=1),
    least_charge=FINITE,
    predicted_ms=POSITIVE,
    dense_ms=POSITIVE,
    layers=tuples(
        st.builds(
            LayerPlan,
            name=NAMES,
            spec=SPECS,
            rank=RANKS,
            ms=FINITE,
            dense_ms=FINITE,
            loss_increase=FINITE,
            charge=FINITE,
        )
    ),
    other_ms=FINITE,
    other_params=COUNTS,
    other_macs=COUNTS,
)
CUTS = st.builds(Cut, loss_increase=FINITE, loss_se=NOT_NEGATIVE, top1_drop=SHARES, top1_se=NOT_NEGATIVE, n=COUNTS)
SENSITIVITIES = st.builds(
    Sensitivity,
    network=NAMES,
    images=COUNTS,
    measured_on=NAMES,
    base_loss=FINITE,
    base_top1=SHARES,
    n=COUNTS,
    options=st.dictionaries(NAMES, st.dictionaries(COUNTS, CUTS, max_size=3), max_size=3),
)
MANIFESTS = st.builds(
    Manifest,
    device=DEVICES,
    model=NAMES,
    labels=tuples(NAMES),
    input=st.builds(
        InputSpec,
        shape=tuples(COUNTS),
        layout=st.sampled_from(["NCHW", "NHWC"]),
        mean=tuples(FINITE),
        std=tuples(FINITE),
    ),
    variants=tuples(
        st.builds(
            Variant,
            name=NAMES,
            runtime=NAMES,
            runtime_version=NAMES,
            precision=st.sampled_from(["fp32", "int8-static", "int4-weights"]),
            file=NAMES,
            sha256=NAMES,
            size_bytes=COUNTS,
            budget_ms=st.none() | POSITIVE,
            budgets=tuples(BUDGETS, 2),
            predicted_ms=st.none() | POSITIVE,
            measured_ms=st.none() | st.builds(MeasuredMs, p50=POSITIVE, p90=POSITIVE, n=COUNTS),
            accuracy=SHARES,
            max_abs_error=st.none() | NOT_NEGATIVE,
            sqnr_db=st.none() | FINITE,
            top1_agreement=st.none() | SHARES,
            cosine=st.none() | SHARES,
            delegation=st.none()
            | st.builds(Delegation, backend=NAMES, taken=COUNTS, operators=COUNTS, fallbacks=tuples(NAMES, 2)),
            params=COUNTS,
            macs=COUNTS,
            ranks=RANKS_BY_NAME,
            planned_on=st.none() | NAMES,
        ),
        2,
    ),
)

# One full example of each saved value, for what must be refused.

PHONE = DeviceFacts(name="pixel-8", soc="Tensor G3", arch="aarch64", cores=9, os="Android 15", memory_gib=7.4)
CONV = LayerSpec(kind="conv2d", in_channels=16, out_channels=32, kernel=(3, 3), padding=(1, 1), input_size=(8, 8))
LINEAR = LayerSpec(kind="linear", in_channels=64, out_channels=10)


def network(*layers: tuple[str, LayerSpec], name: str = "small", other_params: int = 0) -> Network:
    made = tuple(Layer(name=layer, spec=spec, ordered=True) for layer, spec in layers)
    return Network(name=name, layers=made, other_params=other_params)


NETWORK = network(("conv", CONV), ("head", LINEAR))


def row(spec: LayerSpec, rank: Rank, ms: float) -> LatencyRow:
    return LatencyRow(spec=spec, rank=rank, method="probe", timing=Timing.of([ms, ms]))


def latency_table(*rows: LatencyRow, calibrations: tuple[Calibration, ...] = ()) -> LatencyTable:
    return LatencyTable(
        source="measured",
        device=PHONE,
        runtime="executorch",
        runtime_version="1.5.1",
        precision="fp32",
        threads=2,
        created="2026-02-03T10:00:00Z",
        rows=rows,
        calibrations=calibrations,
    )


EXAMPLES: dict[str, Saved] = {
    "LatencyTable": latency_table(row(CONV, 8, 0.5), row(CONV, DENSE, 1.0)),
    "RankPlan": RankPlan(
        network=NETWORK.fingerprint,
        network_name="small",
        device="pixel-8",
        runtime="executorch",
        runtime_version="1.5.1",
        precision="fp32",
        threads=2,
        promises=(Promise(budget=Budget(quantity="ms", limit=2.5), planned=2.4, predicted=2.3, dense=3.0),),
        least_charge=0.01,
        predicted_ms=2.3,
        dense_ms=3.0,
        layers=(LayerPlan(name="conv", spec=CONV, rank=8, ms=0.5, dense_ms=1.0, loss_increase=0.01, charge=0.01),),
        other_ms=0.1,
        other_params=42,
        other_macs=0,
    ),
    "Sensitivity": Sensitivity(
        network="0123456789ab",
        images=64,
        base_loss=0.3,
        base_top1=0.9,
        n=64,
        options={"conv": {8: Cut(loss_increase=0.1, loss_se=0.01, top1_drop=0.05, top1_se=0.02, n=64)}},
    ),
    "Manifest": Manifest(
        device=PHONE,
        model="small",
        labels=("cat", "dog"),
        input=InputSpec(shape=(1, 3, 8, 8), mean=(0.5,), std=(0.2,)),
        variants=(
            Variant(
                name="dense",
                runtime="executorch",
                runtime_version="1.5.1",
                precision="fp32",
                file="dense.pte",
                sha256="0" * 64,
                size_bytes=1000,
                budget_ms=None,
                predicted_ms=None,
                measured_ms=None,
                accuracy=0.9,
                max_abs_error=1e-6,
                sqnr_db=120.0,
                top1_agreement=1.0,
                params=100,
                macs=1000,
                ranks={"conv": DENSE},
            ),
        ),
    ),
}
A_NUMBER: dict[str, tuple[str | int, ...]] = {
    "LatencyTable": ("rows", 0, "timing", "median_ms"),
    "RankPlan": ("layers", 0, "ms"),
    "Sensitivity": ("options", "conv", "8", "loss_increase"),
    "Manifest": ("variants", 0, "accuracy"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("values")


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(kind: str, path: Path) -> str:
    """The message of the TableError that loading `path` raises."""
    with pytest.raises(TableError) as caught:
        type(EXAMPLES[kind]).load(path)
    return str(caught.value)


def assert_one_line_about(path: Path, message: str) -> None:
    assert str(path) in message
    assert "\n" not in message


# Saving and loading


@settings(deadline=None, max_examples=60)
@given(value=TABLES)
def test_a_latency_table_comes_back_as_it_was_saved(value: LatencyTable, folder: Path) -> None:
    """Every row, sample and calibration survives the JSON file."""
    path = value.save(folder / "table.json")

    loaded = LatencyTable.load(path)

    assert loaded == value


@settings(deadline=None, max_examples=60)
@given(value=PLANS)
def test_a_rank_plan_comes_back_as_it_was_saved(value: RankPlan, folder: Path) -> None:
    """Ranks stay numbers or the word dense."""
    path = value.save(folder / "plan.json")

    loaded = RankPlan.load(path)

    assert loaded == value
    assert [layer.rank for layer in loaded.layers] == [layer.rank for layer in value.layers]


@settings(deadline=None, max_examples=60)
@given(value=SENSITIVITIES)
def test_a_sensitivity_comes_back_as_it_was_saved(value: Sensitivity, folder: Path) -> None:
    """Losses survive to the last bit."""
    path = value.save(folder / "sensitivity.json")

    loaded = Sensitivity.load(path)

    assert loaded == value


@settings(deadline=None, max_examples=60)
@given(value=MANIFESTS)
def test_a_manifest_comes_back_as_it_was_saved(value: Manifest, folder: Path) -> None:
    """Labels in any script and variants without a measurement survive."""
    path = value.save(folder / "manifest.json")

    loaded = Manifest.load(path)

    assert loaded == value


def test_saving_makes_the_missing_folders_and_returns_the_path(tmp_path: Path) -> None:
    """A first run need not make its folders itself."""
    path = tmp_path / "a" / "b" / "table.json"

    saved = EXAMPLES["LatencyTable"].save(path)

    assert saved == path
    assert listing(path.parent) == ["table.json"]


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_missing_file_is_refused(kind: str, tmp_path: Path) -> None:
    """The message says what was expected there."""
    path = tmp_path / "absent.json"

    message = refusal(kind, path)

    assert_one_line_about(path, message)
    assert kind in message


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_folder_in_place_of_the_file_is_refused(kind: str, tmp_path: Path) -> None:
    """A path to the run instead of its file is a likely slip."""
    message = refusal(kind, tmp_path)

    assert_one_line_about(tmp_path, message)


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(sorted(EXAMPLES)), share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(kind: str, share: float, folder: Path) -> None:
    """Wherever the file ends too early, nothing is read from it."""
    path = EXAMPLES[kind].save(folder / "whole.json")
    content = path.read_bytes().strip()
    path.write_bytes(content[: int(share * len(content))])

    message = refusal(kind, path)

    assert_one_line_about(path, message)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"null", b"[]", b"7", b'"table"', b"{}", b"not json"])
@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_file_that_is_no_such_value_is_refused(kind: str, content: bytes, tmp_path: Path) -> None:
    """Other JSON, and what is no JSON at all, is named by its path."""
    path = tmp_path / "other.json"
    path.write_bytes(content)

    message = refusal(kind, path)

    assert_one_line_about(path, message)


@pytest.mark.parametrize("version", [0, 9, "1", None])
@pytest.mark.parametrize("kind", EXAMPLES)
def test_another_schema_version_is_refused(kind: str, version: object, tmp_path: Path) -> None:
    """The message names the version found and the one that is read."""
    path = tmp_path / "other.json"
    path.write_text(json.dumps(json.loads(EXAMPLES[kind].model_dump_json()) | {"schema_version": version}))

    message = refusal(kind, path)

    assert_one_line_about(path, message)
    assert f"schema {version!r}" in message
    assert f"reads schema {2 if kind == 'Sensitivity' else 1}" in message


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_unknown_field_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    """A misspelt or newer field is never dropped in silence."""
    path = tmp_path / "more.json"
    path.write_text(json.dumps(json.loads(EXAMPLES[kind].model_dump_json()) | {"latency_us": 1}))

    message = refusal(kind, path)

    assert_one_line_about(path, message)
    assert "latency_us" in message


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_number_that_is_not_finite_is_refused_by_its_place(kind: str, number: float, tmp_path: Path) -> None:
    """Python's json reads NaN and Infinity, a saved value does not hold them."""
    path = tmp_path / "nan.json"
    content = json.loads(EXAMPLES[kind].model_dump_json())
    *outer, last = A_NUMBER[kind]
    holder = content
    for key in outer:
        holder = holder[key]
    holder[last] = number
    path.write_text(json.dumps(content))

    message = refusal(kind, path)

    assert_one_line_about(path, message)
    assert ".".join(map(str, A_NUMBER[kind])) in message


@pytest.mark.parametrize("field", ["runtime", "rows", "device"])
def test_a_missing_field_is_refused_by_its_name(field: str, tmp_path: Path) -> None:
    """What has no default must be there."""
    path = tmp_path / "less.json"
    content = json.loads(EXAMPLES["LatencyTable"].model_dump_json())
    del content[field]
    path.write_text(json.dumps(content))

    message = refusal("LatencyTable", path)

    assert_one_line_about(path, message)
    assert field in message


# Writing atomically


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """A disk that is full after so many bytes, also for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_writing_replaces_the_old_content_and_leaves_nothing_beside(tmp_path: Path) -> None:
    """After a write there is the one file."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    write_atomically(path, b"new")

    assert path.read_bytes() == b"new"
    assert listing(tmp_path) == ["file"]


def test_writing_to_a_full_disk_keeps_the_old_content_and_leaves_nothing_beside(tmp_path: Path) -> None:
    """A write that fails half-way is a DataError, and the old file stands."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    with files_no_larger_than(10), pytest.raises(DataError, match="cannot be written") as caught:
        write_atomically(path, b"new" * 1000)

    assert_one_line_about(path, str(caught.value))
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["file"]


def test_writing_over_a_folder_keeps_it_and_leaves_nothing_beside(tmp_path: Path) -> None:
    """A file never takes the place of a folder."""
    path = tmp_path / "run"
    (path / "inner").mkdir(parents=True)

    with pytest.raises(DataError, match="cannot be written") as caught:
        write_atomically(path, b"new")

    assert_one_line_about(path, str(caught.value))
    assert listing(path) == ["inner"]
    assert listing(tmp_path) == ["run"]


@pytest.mark.parametrize("below", ["table.json", "profiles/table.json"])
def test_writing_below_a_file_is_refused_and_leaves_it_as_it_was(below: str, tmp_path: Path) -> None:
    """A parent that is a file is a DataError like every other folder that cannot be written."""
    parent = tmp_path / "file"
    parent.write_bytes(b"old")

    with pytest.raises(DataError, match="cannot be written") as caught:
        write_atomically(parent / below, b"new")

    assert_one_line_about(parent / below, str(caught.value))
    assert parent.read_bytes() == b"old"
    assert listing(tmp_path) == ["file"]


# LayerSpec against torch


def grouped(spec: LayerSpec) -> LayerSpec:
    """The spec with as many groups as its channels can be divided into."""
    groups = math.gcd(spec.groups, spec.in_channels, spec.out_channels)
    return spec.model_copy(update={"groups": groups})


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, LayerSpec]:
    """A stock convolution and the spec that says the same."""
    groups = draw(st.integers(1, 4))
    small = st.tuples(st.integers(1, 4), st.integers(1, 4))
    spec = LayerSpec(
        kind="conv2d",
        in_channels=groups * draw(st.integers(1, 4)),
        out_channels=groups * draw(st.integers(1, 4)),
        kernel=draw(small),
        stride=draw(small),
        padding=draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        dilation=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        groups=groups,
        bias=draw(st.booleans()),
        input_size=draw(st.tuples(st.integers(1, 14), st.integers(1, 14))),
        batch=draw(st.integers(1, 3)),
    )
    assume(all(size > 0 for size in spec.output_size))
    stock = nn.Conv2d(
        spec.in_channels,
        spec.out_channels,
        spec.kernel,
        spec.stride,
        spec.padding,
        spec.dilation,
        spec.groups,
        spec.bias,
        device="meta",
    )
    return stock, spec


def count_macs(module: nn.Module, x: torch.Tensor) -> tuple[tuple[int, ...], int]:
    """The output's shape and the multiply-accumulates that torch itself counts; it counts two flops each."""
    with FlopCounterMode(display=False) as counter:
        output = module(x)
    return tuple(output.shape), counter.get_total_flops() // 2


def count_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@settings(deadline=None, max_examples=150)
@given(pair=convolutions())
def test_a_convolution_has_the_size_and_cost_that_torch_counts(pair: tuple[nn.Conv2d, LayerSpec]) -> None:
    """Parameters, MACs and output size hold for any kernel, stride, padding, dilation and groups."""
    stock, spec = pair

    shape, macs = count_macs(stock, torch.empty(spec.batch, spec.in_channels, *spec.input_size, device="meta"))

    assert shape == (spec.batch, spec.out_channels, *spec.output_size)
    assert spec.params() == count_params(stock)
    assert spec.macs() == macs
    assert spec.size_bytes() == 4 * count_params(stock)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    bias=st.booleans(),
    leading=st.lists(st.integers(1, 5), max_size=2),
    batch=st.integers(1, 4),
)
def test_a_linear_layer_has_the_size_and_cost_that_torch_counts(
    sizes: tuple[int, int], bias: bool, leading: list[int], batch: int
) -> None:
    """Tokens before the channels multiply the MACs, not the parameters."""
    n, m = sizes
    stock = nn.Linear(n, m, bias=bias, device="meta")
    spec = LayerSpec(
        kind="linear", in_channels=n, out_channels=m, bias=bias, input_size=tuple(leading), batch=batch
    )

    shape, macs = count_macs(stock, torch.empty(batch, *leading, n, device="meta"))

    assert shape == (batch, *spec.output_size, m)
    assert spec.params() == count_params(stock)
    assert spec.macs() == macs


@settings(deadline=None, max_examples=60)
@given(pair=convolutions(), rank=st.integers(1, 20))
def test_a_rank_has_the_size_and_cost_of_two_thin_stock_layers(
    pair: tuple[nn.Conv2d, LayerSpec], rank: int
) -> None:
    """A k x k convolution to r channels without bias, then a 1 x 1 with it, is what a cut leaves."""
    spec = pair[1].model_copy(update={"groups": 1})
    first = nn.Conv2d(
        spec.in_channels,
        rank,
        spec.kernel,
        spec.stride,
        spec.padding,
        spec.dilation,
        bias=False,
        device="meta",
    )
    thin = nn.Sequential(first, nn.Conv2d(rank, spec.out_channels, 1, bias=spec.bias, device="meta"))

    _, macs = count_macs(thin, torch.empty(spec.batch, spec.in_channels, *spec.input_size, device="meta"))

    assert spec.params(rank) == count_params(thin)
    assert spec.macs(rank) == macs


@given(spec=SPECS.map(grouped), rank=st.integers(1, 512))
def test_a_rank_is_smaller_than_dense_exactly_below_break_even(spec: LayerSpec, rank: int) -> None:
    """Break-even m n / (m + n) is where two thin layers hold as many weights as one."""
    smaller = spec.params(rank) < spec.params()

    assert smaller == (rank < spec.break_even_rank)
    assert spec.folds(rank) == (not smaller)
    assert spec.break_even_rank < spec.full_rank


def test_break_even_of_a_known_layer_is_the_textbook_number() -> None:
    """A 3 x 3 convolution of 64 to 64 channels breaks even at 64 x 576 / 640."""
    spec = LayerSpec(kind="conv2d", in_channels=64, out_channels=64, kernel=(3, 3), input_size=(8, 8))

    assert spec.break_even_rank == pytest.approx(57.6)
    assert spec.full_rank == 64


# Timing


@settings(deadline=None)
@given(samples=st.lists(st.floats(1e-3, 1e4), min_size=2, max_size=60))
def test_timing_has_the_median_p90_and_spread_that_numpy_gives(samples: list[float]) -> None:
    """Quantiles are interpolated as numpy does by default."""
    assume(np.ptp(samples) == 0 or np.ptp(samples) > 1e-9)

    timing = Timing.of(samples)

    low, high = np.percentile(samples, [25, 75])
    assert timing.n == len(samples)
    assert timing.median_ms == pytest.approx(np.median(samples))
    assert timing.p90_ms == pytest.approx(np.percentile(samples, 90))
    assert timing.spread == pytest.approx((high - low) / np.median(samples), abs=1e-9)
    assert timing.samples_ms == pytest.approx(samples, abs=1e-6)


@settings(deadline=None)
@given(start=st.floats(1e-3, 1e4), steps=st.lists(st.booleans(), min_size=1, max_size=8))
@example(start=6.8901157357980924, steps=[True])
def test_timing_takes_samples_that_differ_in_the_last_bit(start: float, steps: list[bool]) -> None:
    """Rounding never makes the spread negative."""
    samples = [start]
    for up in steps:
        samples.append(math.nextafter(samples[-1], math.inf) if up else samples[-1])

    timing = Timing.of(samples)

    assert timing.spread == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("samples", [[], [1.0]])
def test_timing_refuses_fewer_than_two_samples(samples: list[float]) -> None:
    """One sample has no spread."""
    with pytest.raises(TableError, match=f"{len(samples)} sample"):
        Timing.of(samples)


def test_timing_of_a_clock_that_stands_still_has_no_spread() -> None:
    """A median of zero divides nothing."""
    timing = Timing.of([0.0, 0.0, 0.0])

    assert timing.median_ms == 0
    assert timing.spread == 0


# Budgets


@pytest.mark.parametrize(
    "budget", [0, -1, -0.0, math.nan, math.inf, -math.inf, "abc", "", "nan", "inf", "-2", "2.5 ms", None, []]
)
def test_a_budget_that_is_no_positive_time_is_refused_with_its_value(budget: Any) -> None:
    """The message shows what was given."""
    with pytest.raises(BudgetError) as caught:
        check_budget(budget)

    assert repr(budget) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("budget", "expected"), [(2, 2.0), (2.5, 2.5), ("2.5", 2.5), (" 1e-3 ", 0.001)])
def test_a_good_budget_becomes_a_float(budget: float | str, expected: float) -> None:
    """Text from the command line is taken as a number of milliseconds."""
    checked = check_budget(budget)

    assert checked == expected
    assert type(checked) is float


# Tables and networks


@pytest.mark.parametrize(
    ("what", "value", "have"),
    [
        ("device", "pi-5", "pixel-8"),
        ("runtime", "litert", "executorch"),
        ("runtime_version", "9.9", "1.5.1"),
        ("threads", 4, "2"),
    ],
)
def test_a_table_names_what_it_was_measured_with_otherwise(what: str, value: str | int, have: str) -> None:
    """The message holds the thing, what the table has, and what was asked for."""
    table = latency_table(row(CONV, DENSE, 1.0))
    wanted: dict[str, Any] = {
        "device": "pixel-8",
        "runtime": "executorch",
        "runtime_version": "1.5.1",
        "threads": 2,
    }

    with pytest.raises(TableError) as caught:
        table.require(**wanted | {what: value})

    assert f"{what.replace('_', ' ')} {have}, not {value}" in str(caught.value)


def test_a_table_serves_what_it_was_measured_with() -> None:
    """Nothing differs, nothing is raised."""
    table = latency_table(row(CONV, DENSE, 1.0))

    table.require(runtime="executorch", runtime_version="1.5.1", threads=2, device="pixel-8")


def test_a_table_gives_its_ranks_ascending_with_dense_last() -> None:
    """Rows may be in any order."""
    table = latency_table(row(CONV, 16, 0.7), row(CONV, DENSE, 1.0), row(LINEAR, 2, 0.1), row(CONV, 4, 0.4))

    assert table.ranks(CONV) == (4, 16, DENSE)
    assert table.ranks(LINEAR) == (2,)


@pytest.mark.parametrize("ask", [lambda t: t.row(CONV, 5), lambda t: t.predict_ms(NETWORK, {})])
def test_a_table_refuses_what_was_not_measured(ask: Callable[[LatencyTable], object]) -> None:
    """The table never guesses: the message says to profile."""
    table = latency_table(row(CONV, 4, 0.4))

    with pytest.raises(TableError, match="profile the model first"):
        ask(table)


@given(
    layers=st.lists(st.floats(1e-3, 100), min_size=2, max_size=2),
    rest=st.floats(0, 10),
    slope=st.floats(0.1, 10),
    intercept=st.floats(-5, 5),
)
def test_the_prediction_is_slope_times_rest_and_layers_plus_intercept(
    layers: list[float], rest: float, slope: float, intercept: float
) -> None:
    """Named layers count at their rank, the others dense."""
    fit = Calibration(
        network=NETWORK.fingerprint,
        rest_ms=rest,
        slope=slope,
        intercept_ms=intercept,
        loo_mape=0,
        networks=(),
    )
    table = latency_table(
        row(CONV, 4, layers[0]), row(CONV, DENSE, 1e6), row(LINEAR, DENSE, layers[1]), calibrations=(fit,)
    )

    predicted = table.predict_ms(NETWORK, {"conv": 4})

    assert predicted == pytest.approx(slope * (rest + sum(layers)) + intercept)


@pytest.mark.parametrize(
    "change",
    [
        {"out_channels": 33},
        {"kernel": (5, 5)},
        {"stride": (2, 2)},
        {"input_size": (9, 8)},
        {"bias": False},
        {"activation": "relu"},
    ],
)
def test_the_fingerprint_changes_with_a_shape(change: dict[str, Any]) -> None:
    """Tables and sensitivities are of one network only."""
    other = network(("conv", CONV.model_copy(update=change)), ("head", LINEAR))

    assert other.fingerprint != NETWORK.fingerprint


def test_the_fingerprint_changes_with_the_order_and_the_names_of_layers() -> None:
    """Sensitivities are kept by layer name."""
    turned = network(("head", LINEAR), ("conv", CONV))
    renamed = network(("stem", CONV), ("head", LINEAR))

    assert len({NETWORK.fingerprint, turned.fingerprint, renamed.fingerprint}) == 3


def test_the_fingerprint_does_not_change_with_what_lies_outside_of_the_layers() -> None:
    """BatchNorm parameters and the network's name decide nothing."""
    other = network(("conv", CONV), ("head", LINEAR), name="another", other_params=999)

    assert other.fingerprint == NETWORK.fingerprint


@given(ranks=st.fixed_dictionaries({}, optional={"conv": st.integers(1, 9), "head": st.integers(1, 9)}))
def test_a_network_sums_its_layers_and_what_lies_outside(ranks: dict[str, Rank]) -> None:
    """A layer that is not named counts dense, and so does one at or above break-even."""
    whole = network(("conv", CONV), ("head", LINEAR), other_params=7)

    conv, head = (
        DENSE if spec.folds(ranks.get(name, DENSE)) else ranks[name]
        for name, spec in (("conv", CONV), ("head", LINEAR))
    )
    assert whole.params(ranks) == 7 + CONV.params(conv) + LINEAR.params(head)
    assert whole.macs(ranks) == CONV.macs(conv) + LINEAR.macs(head)


def test_a_plans_totals_are_its_layers_and_what_lies_outside() -> None:
    """The dense totals differ by the layers' ranks alone."""
    plan = EXAMPLES["RankPlan"]
    assert isinstance(plan, RankPlan)

    chosen, dense = plan.totals(), plan.totals(dense=True)

    assert (chosen.params, dense.params) == (42 + CONV.params(8), 42 + CONV.params())
    assert (chosen.macs, dense.macs) == (CONV.macs(8), CONV.macs())
    assert (chosen.size_bytes, dense.size_bytes) == (4 * chosen.params, 4 * dense.params)
    assert (chosen.ms, dense.ms) == (2.3, 3.0)


def test_a_sensitivity_counts_from_the_uncut_network() -> None:
    """Dense costs nothing, a rank what it adds, and a rank that was not evaluated is refused."""
    sensitivity = EXAMPLES["Sensitivity"]
    assert isinstance(sensitivity, Sensitivity)

    assert sensitivity.increase("conv", DENSE) == sensitivity.accuracy_drop("conv", DENSE) == 0
    assert sensitivity.increase("conv", 8) == 0.1
    assert sensitivity.accuracy_drop("conv", 8) == 0.05
    for asked in (sensitivity.increase, sensitivity.accuracy_drop):
        with pytest.raises(TableError, match="'conv' at rank 5"):
            asked("conv", 5)
