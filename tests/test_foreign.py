"""Tables of other tools: what they tell is taken, what they do not tell stays open, what is wrong is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_edge.errors import TableError
from maestro_edge.profiling.foreign import Facts, Format, import_table, layers_of
from maestro_edge.values import (
    DENSE,
    NOT_TOLD,
    LatencyTable,
    Layer,
    LayerSpec,
    Network,
    OperatorRow,
    Stated,
)

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data" / "foreign"
KNOWN = Facts(device="phone", runtime="tool", precision="fp32")
PHONE = Facts(device="phone", precision="fp32")

Read = Callable[[Path], LatencyTable]
READERS: dict[str, tuple[str, Read]] = {
    "tflite": ("benchmark_model.txt", lambda path: import_table(path, "tflite", given=PHONE)),
    "etdump": ("etdump.tsv", lambda path: import_table(path, "etdump", given=PHONE)),
    "lut": ("lut.json", lambda path: import_table(path, "lut", given=KNOWN, unit="ms")),
    "ai-hub": (
        "perf.yaml",
        lambda path: import_table(
            path, "ai-hub", given=Facts(device="Phone A", runtime="tflite", precision="fp32"), column="float"
        ),
    ),
    "ops": ("ops.csv", lambda path: import_table(path, "mobile-benchmark", given=PHONE, column="phone|gpu|float")),
    "e2e": (
        "e2e.csv",
        lambda path: import_table(path, "mobile-benchmark", given=PHONE, column="phone|1large2med|float"),
    ),
}


def read(name: str) -> LatencyTable:
    file, reader = READERS[name]
    return reader(DATA / file)


@pytest.mark.parametrize("name", READERS)
def test_every_format_becomes_an_imported_table_that_loads_again(name: str, tmp_path: Path) -> None:
    """What no format tells, chip and build, is said not to be told."""
    table = read(name)

    assert (table.source, table.device.soc, table.device.cores) == ("imported", NOT_TOLD, None)
    assert table.file_name.endswith(".imported.json")
    assert LatencyTable.load(table.save(tmp_path / table.file_name)) == table


def test_tflites_operators_are_those_of_the_regular_runs() -> None:
    """In run order, with the number of runs; the initialisation's section is another one."""
    table = read("tflite")

    assert [(row.kind, row.ms) for row in table.operators] == [
        ("CONV_2D", 4.25),
        ("FULLY_CONNECTED", 1.5),
        ("SOFTMAX", 0.029),
    ]
    assert table.operators[0].timing == Stated(ms=4.25, statistic="mean", n=50)
    assert table.networks[0].timing == Stated(ms=5.79, statistic="mean", n=50, std_ms=0.029)
    assert (table.threads, table.runtime_version) == (None, NOT_TOLD)


def test_etdumps_operators_are_the_delegates_own() -> None:
    """The call of the whole delegate, the framework and what has no time are left out."""
    assert [(row.kind, row.ms) for row in read("etdump").operators] == [
        ("Convolution (NHWC, F32) IGEMM", 0.25),
        ("Fully Connected (NC, F32) GEMM", 0.05),
    ]


def test_raw_samples_of_an_etdump_are_kept(tmp_path: Path) -> None:
    """to_dataframe().to_csv() writes them as a list; the header has the unit."""
    path = tmp_path / "frame.csv"
    path.write_text('event_name,raw,p50 (us)\nConvolution #1,"[2000.0, 1000.0, 3000.0]",2000.0\n')

    row = import_table(path, "etdump", given=PHONE).operators[0]

    assert (row.ms, getattr(row.timing, "n", None)) == (2.0, 3)


def test_a_look_up_tables_key_becomes_features() -> None:
    """Sizes, and what else it names."""
    found = {row.kind: row.features or {} for row in read("lut").operators}

    assert found["expanded_conv"]["expand"] == 6
    assert (found["expanded_conv"]["pixels_out"], found["expanded_conv"]["out_channels"]) == (64, 24)
    assert (found["Logits"]["pixels_out"], found["Logits"]["in_channels"]) == (1, 24)


def test_ai_hub_tells_a_whole_network_of_one_device_and_runtime() -> None:
    """Its version too, and neither statistic nor threads."""
    table = read("ai-hub")

    assert (table.device.name, table.runtime, table.runtime_version) == ("Phone A", "tflite", "tflite 2.17.0")
    assert [(row.network, row.timing) for row in table.networks] == [("Net", Stated(ms=2.5, statistic="not told"))]
    assert (table.rows, table.operators) == ((), ())


def test_the_phones_csv_is_in_microseconds_and_its_cores_are_threads() -> None:
    """Whole networks with their deviation, operators with their work."""
    whole, operators = read("e2e"), read("ops").operators

    assert (whole.threads, whole.networks[0].timing) == (3, Stated(ms=2.0, statistic="mean", std_ms=0.02))
    assert [row.ms for row in operators] == [0.3205, 0.04, 0.01, 0.005]
    macs = [(row.features or {})["macs"] for row in operators]
    assert macs == [16 * 16 * 16 * 3 * 9, 16 * 16 * 16 * 9, 16 * 16 * 16, 160]


def test_another_machines_table_is_imported_here(tmp_path: Path) -> None:
    """Its rows stay as they are, its file another one than what this machine measured."""
    path = next(iter(sorted((ROOT / "profiles").glob("*.json"))))

    table = import_table(path, "table")

    assert table.source == "imported"
    assert table.rows == LatencyTable.load(path).rows
    assert LatencyTable.load(table.save(tmp_path / table.file_name)) == table


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("tflite", "4.250", "nan", "line 12: \\[avg ms\\] is 'nan'"),
        ("tflite", "4.250", "-4.25", "line 12: \\[avg ms\\] is '-4.25'"),
        ("tflite", "4.250", "4250000000", "more than an hour"),
        ("tflite", "Run Order", "Something", "no 'Run Order' section"),
        ("tflite", "Regular Benchmark Runs", "Benchmark Initialization", "only the initialisation"),
        ("tflite", "[avg ms]", "[average]", "no column \\[avg ms\\]"),
        ("tflite", "executed: 3", "executed: 4", "3 nodes in run order, 4 said"),
        ("tflite", "count=50", "count=x", "count is 'x'"),
        ("etdump", "p50 (ms)", "p50", "no column such as"),
        ("etdump", "\t0.25\t", "\tinf\t", "line 3: p50 \\(ms\\) is 'inf'"),
        ("etdump", "event_name", "name", "no column 'event_name'"),
        ("etdump", "\tTrue\t", "\t", "cells under a header of 12"),
        ("lut", "0.5,", "NaN,", "NaN is no number of JSON"),
        ("lut", "0.5,", "-1,", "key 'Conv-input.*mean is '-1'"),
        ("lut", "0.5,", "[1],", "mean is '\\[1\\]'"),
        ("lut", "0.5,", "true,", "mean is 'True'"),
        ("lut", "32x32x3", "32x32", "neither HxWxC nor C"),
        ("lut", "kernel:3", "kernel:1e999", "kernel is '1e999'"),
        ("ai-hub", "2.5", ".nan", "inference_time_milliseconds is 'nan'"),
        ("ai-hub", "2.5", "-2.5", "inference_time_milliseconds is '-2.5'"),
        ("ai-hub", "2.5", "!!python/object/apply:os.system [ls]", "not plain YAML"),
        ("ai-hub", "Passed", "&a [x]\n              extra: *a", "YAML aliases"),
        ("ai-hub", "Phone A:", "Phone C:", "give --device, one of Phone C, Phone B"),
        ("ai-hub", "precisions", "models", "no 'precisions'"),
        ("ai-hub", "  float:", "  float: [", "not plain YAML"),
        ("ops", "320.5", "nan", "line 2: phone\\|gpu\\|float is 'nan'"),
        ("ops", "{'Input_shape': '32'", "{'Input_shape': '-32'", "Input_shape is '-32'"),
        ("ops", "{'Input_shape': '32'", "__import__('os'", "is no dictionary"),
        ("ops", "'Filter': '16'", "'Filter': '0'", "0 channels"),
        ("ops", "operation", "op", "no column 'operation'"),
        ("e2e", "2000.0", "1e400", "mean is '1e400'"),
        ("e2e", ",90.0\n", "\n", "cells under a header"),
        ("e2e", "phone|1large2med|float|std", "model", "two columns of one name|no column"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(
    name: str, before: str, after: str, message: str, tmp_path: Path
) -> None:
    """One thing changed in a sound file of the format."""
    file, reader = READERS[name]
    content = (DATA / file).read_text()
    assert before in content
    path = tmp_path / file
    path.write_text(content.replace(before, after))

    with pytest.raises(TableError, match=message) as refused:
        reader(path)

    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95.", b"\0\0", b"[" * 100_000, b"a: " * 5000], ids=len)
def test_what_is_no_such_file_at_all_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    """Empty, a pickle, zeros, and nesting without end."""
    path = tmp_path / "file"
    path.write_bytes(content)

    with pytest.raises(TableError, match="file"):
        READERS[name][1](path)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1))
def test_a_file_cut_off_anywhere_is_refused_or_read(
    name: str, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Never another exception."""
    file, reader = READERS[name]
    content = (DATA / file).read_bytes()
    path = tmp_path_factory.mktemp("cut") / file
    path.write_bytes(content[: int(share * len(content))])

    try:
        assert reader(path).source == "imported"
    except TableError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("kind", "file", "facts", "message"),
    [
        ("tflite", "benchmark_model.txt", Facts(), "does not tell the device: give --device"),
        ("tflite", "benchmark_model.txt", Facts(device="phone"), "give --precision"),
        (
            "tflite",
            "benchmark_model.txt",
            Facts(device="p", precision="fp99"),
            "precision 'fp99', which is none of",
        ),
        ("etdump", "etdump.tsv", Facts(device="p", precision="fp32", runtime="litert"), "drop --runtime"),
        ("lut", "lut.json", KNOWN, "does not tell its unit: give --unit"),
        ("mobile-benchmark", "ops.csv", PHONE, "give --column, one of phone\\|gpu\\|float"),
        ("ai-hub", "perf.yaml", Facts(device="Phone A", precision="fp32"), "give --runtime, one of tflite, onnx"),
    ],
)
def test_what_a_file_does_not_tell_is_asked_for(kind: Format, file: str, facts: Facts, message: str) -> None:
    """Nothing is invented, and nothing told is overruled."""
    with pytest.raises(TableError, match=message):
        import_table(DATA / file, kind, given=facts)


def network(*specs: LayerSpec) -> Network:
    layers = tuple(Layer(name=f"layer{n}", spec=spec, ordered=True) for n, spec in enumerate(specs))
    return Network(name="net", layers=layers)


CONV = LayerSpec(kind="conv2d", in_channels=3, out_channels=8, kernel=(3, 3), padding=(1, 1), input_size=(8, 8))
LINEAR = LayerSpec(kind="linear", in_channels=8, out_channels=4)


def test_operators_are_given_to_layers_in_execution_order() -> None:
    """What has no weights is passed over; layers of one shape share the mean."""
    operators = read("tflite").operators

    assert [(row.spec, row.rank, row.ms) for row in layers_of(network(CONV, LINEAR), operators)] == [
        (CONV, DENSE, 4.25),
        (LINEAR, DENSE, 1.5),
    ]
    twice = (*operators, OperatorRow(network="n", name="", kind="CONV_2D", timing=Stated(ms=1, statistic="mean")))
    assert layers_of(network(CONV, LINEAR, CONV), twice)[0].ms == pytest.approx(2.625)


def test_operators_of_another_network_are_refused() -> None:
    """By their count, and by their kinds."""
    operators = read("tflite").operators

    with pytest.raises(TableError, match="2 operators with weights, but net has 1 layers"):
        layers_of(network(CONV), operators)
    with pytest.raises(TableError, match="stands where layer0"):
        layers_of(network(LINEAR, CONV), operators)


@pytest.mark.parametrize("source", ["modelled", "emulated"])
def test_a_table_that_was_not_measured_is_not_handed_over(source: str, tmp_path: Path) -> None:
    """Imported would hide what it is."""
    path = next(iter(sorted((ROOT / "profiles").glob("*.json"))))
    content = json.loads(path.read_text())
    copy = tmp_path / "table.json"
    copy.write_text(json.dumps({**content, "source": source}))

    with pytest.raises(TableError, match=f"is {source}: hand over the measured one"):
        import_table(copy, "table")
