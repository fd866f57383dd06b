"""maestro-edge profiles: tables listed, shown, compared, checked and imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from maestro_edge.cli import app
from maestro_edge.errors import TableError
from maestro_edge.profiling.checking import compare, problems
from maestro_edge.values import LatencyTable

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "profiles").glob("*.json"))
FOREIGN = Path(__file__).parent / "data" / "foreign"
Change = Callable[[dict[str, Any]], object]


def profiles(*argv: str | Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, output and error: the command line prints to the file descriptor itself."""
    done = CliRunner().invoke(app, ["profiles", *map(str, argv)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, capfd.readouterr().out, done.stderr


def devices(out: str) -> str:
    """The first column of a list; a demo leaves tables of its machine beside the committed ones, and a long name
    goes on in the next line."""
    return "".join(line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│"))


def changed(path: Path, change: Change) -> Path:
    """A copy of the first committed table with one thing changed."""
    content = json.loads(COMMITTED[0].read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def scaled(content: dict[str, Any], index: int, factor: float) -> None:
    timing = content["rows"][index]["timing"]
    timing["median_ms"] *= factor
    timing["samples_ms"] = [factor * sample for sample in timing["samples_ms"]]


def test_list_tells_what_each_table_is_of(capfd: pytest.CaptureFixture[str]) -> None:
    """Device, runtime, version, precision, rows, date, source and error."""
    code, out, _ = profiles("list", "--profiles", ROOT / "profiles", capfd=capfd)

    assert code == 0
    lines = [line for line in out.splitlines() if " measured " in line]
    for path, line in zip(sorted(COMMITTED), lines, strict=True):
        table = LatencyTable.load(path)
        error = f"{100 * table.calibrations[0].loo_mape:.1f} %"
        assert table.device.name in devices(out)
        for text in ("fp32", str(len(table.rows)), table.created[:10], table.runtime, error):
            assert text in line


def test_list_cuts_no_devices_name_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It goes on in the next line: tables' files begin with it."""
    table = LatencyTable.load(COMMITTED[0])
    name = "intel-r-xeon-r-processor-with-a-long-name-avx512-2c"
    named = table.model_copy(update={"device": table.device.model_copy(update={"name": name})})
    named.save(tmp_path / named.file_name)

    code, out, _ = profiles("list", "--profiles", tmp_path, capfd=capfd)

    assert code == 0
    assert devices(out) == name


def test_show_has_every_row_beside_its_dense_layer(capfd: pytest.CaptureFixture[str]) -> None:
    """A rank that is faster than dense says how much."""
    table = LatencyTable.load(COMMITTED[0])

    code, out, _ = profiles("show", COMMITTED[0], capfd=capfd)

    assert code == 0
    lines = [line for line in out.splitlines() if "in-model" in line or "probe" in line]
    assert len(lines) == len(table.rows)
    for row, line in zip(table.rows, lines, strict=True):
        assert f"{row.ms:.4f}" in line
        if row.rank != "dense":
            assert f"{table.row(row.spec, 'dense').ms / row.ms:.2f}x" in line


def test_diff_finds_the_row_and_the_step_that_moved(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One row thrice as slow: the median stays, and the steps beside it move."""
    table = LatencyTable.load(COMMITTED[0])
    index = next(n for n, row in enumerate(table.rows) if row.rank == 32)
    later = changed(tmp_path / "later.json", lambda content: scaled(content, index, 3))

    code, out, _ = profiles("diff", COMMITTED[0], later, capfd=capfd)

    found = compare(table, LatencyTable.load(later))
    assert (found.median, found.worst) == (1, (table.rows[index].spec, 32))
    assert found.moved
    assert all(str(table.rows[index].spec) in step and " 32" in step for step in found.moved)
    assert code == 0
    assert "median 1.000, worst 3.000" in out


def test_tables_without_a_common_layer_are_not_compared(tmp_path: Path) -> None:
    """Ratios of nothing say nothing."""
    empty = changed(tmp_path / "empty.json", lambda content: content.update(rows=[], calibrations=[]))

    with pytest.raises(TableError, match="no layer in common"):
        compare(LatencyTable.load(COMMITTED[0]), LatencyTable.load(empty))


def test_every_committed_table_is_sound(capfd: pytest.CaptureFixture[str]) -> None:
    """What users measure is reviewed by the same command."""
    code, out, _ = profiles("validate", *COMMITTED, capfd=capfd)

    assert code == 0, out
    assert out.count("sound") == len(COMMITTED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["rows"][0]["timing"].update(median_ms=float("nan")), "finite number"),
        (lambda c: c["rows"][0]["timing"].update(median_ms=-1.0), "greater than or equal to 0"),
        (lambda c: scaled(c, 0, 0.0), "takes 0 ms"),
        (lambda c: c["rows"][0]["timing"]["samples_ms"].__setitem__(0, -1.0), "a sample of -1 ms"),
        (lambda c: c["rows"][0]["timing"].update(n=3), "says 3 samples"),
        (lambda c: c["rows"][0]["timing"].update(median_ms=7.0), "says a median of 7 ms"),
        (lambda c: c["rows"].append(c["rows"][0]), "2 rows"),
        (lambda c: c["rows"][-1].update(rank=100_000), "above its full rank"),
        (lambda c: [r["timing"].update(spread=0.9) for r in c["rows"]], "varies by 90 %"),
        (lambda c: c.update(rows=[r for r in c["rows"] if r["rank"] != "dense"]), "no dense row"),
        (lambda c: c.update(rows=[]), "no time at all"),
        (lambda c: c["rows"][0].update(method="modelled"), "cannot hold a Timing"),
        (lambda c: c["rows"][0].update(method="imported"), "imported, not measured"),
        (lambda c: c.update(schema_version=9), "schema 9"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line_and_exit_code_1(
    change: Change, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside a sound table, which is still said to be sound."""
    path = changed(tmp_path / "table.json", change)

    code, out, error = profiles("validate", path, COMMITTED[0], capfd=capfd)

    assert code == 1
    assert message in " ".join(out.split())
    assert "sound" in out
    assert "1 of 2 tables are not sound" in error


def test_an_imported_file_is_a_table_among_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Marked as imported in its name and in the list; not replaced by accident."""
    command = ("import", FOREIGN / "benchmark_model.txt", "--format", "tflite", "--profiles", tmp_path)
    facts = ("--device", "phone", "--precision", "fp32")

    code, out, _ = profiles(*command, *facts, capfd=capfd)

    assert code == 0
    assert "3 operators, 1 networks, imported" in " ".join(out.split())
    path = tmp_path / "phone.tflite-not-told.fp32.imported.json"
    assert problems(LatencyTable.load(path)) == ()
    listed = profiles("list", "--profiles", tmp_path, capfd=capfd)[1]
    assert "imported" in listed
    assert "not told" in listed
    assert "3 operators and 1 whole networks" in profiles("show", path, capfd=capfd)[1]
    again = profiles(*command, *facts, capfd=capfd)
    assert (again[0], "--force replaces it" in again[2]) == (1, True)
    assert profiles(*command, *facts, "--force", capfd=capfd)[0] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("import", FOREIGN / "lut.json", "--format", "lut"), "give --unit"),
        (("import", FOREIGN / "benchmark_model.txt", "--format", "tflite"), "give --device"),
        (("import", FOREIGN / "missing.txt", "--format", "tflite"), "cannot be read"),
        (("show", FOREIGN / "lut.json"), "schema None"),
        (("list", "--profiles", FOREIGN / "none"), "no latency table there"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    argv: tuple[str | Path, ...], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On standard error, with exit code 1, and nothing written."""
    extra = ("--profiles", tmp_path) if argv[0] == "import" else ()

    code, out, error = profiles(*argv, *extra, capfd=capfd)

    assert (code, out) == (1, "")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
