"""The rules of the code base, read from its syntax trees: who imports whom, what is lazy, who prints."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

import maestro_edge

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "maestro_edge"

ROWS = {
    "errors": 1,
    "values": 2,
    "ordered": 3,
    "devices": 3,
    "runtimes": 3,
    "planning.greedy": 3,
    "planning.exact": 3,
    "training": 4,
    "profiling": 4,
    "planning": 4,
    "bundling": 4,
    "reporting": 4,
    "terminal": 4,
    "recipes": 5,
    "cli": 5,
}
"""Each module's row: the longest name that it begins with counts."""

SIDEWAYS = {
    ("runtimes", "devices"),
    ("terminal", "profiling"),
    ("cli", "recipes"),
}
"""Runtimes measure on devices, the terminal lists those, the command line calls recipes: all else is apart."""

OWNERS = {
    "executorch": {
        "runtimes/executorch.py",
        "runtimes/elastic_executorch.py",
        "runtimes/pte.py",
        "runtimes/runner.py",
        "runtimes/xnnpack.py",
    },
    "litert_torch": {"runtimes/litert.py"},
    "ai_edge_litert": {"runtimes/tflite.py", "runtimes/delegation.py", "runtimes/runner.py"},
    "tflite_runtime": {"runtimes/runner.py"},
    "ai_edge_quantizer": {"runtimes/litert.py"},
    "torchao": {"runtimes/executorch.py"},
    "flatbuffers": {"runtimes/tflite.py", "runtimes/flatbuffer.py"},
    "coremltools": {"runtimes/mil.py"},
    "onnx": {"runtimes/onnx_graph.py"},
    "onnxruntime": {"runtimes/onnx.py", "runtimes/runner.py"},
    "onnxscript": {"runtimes/onnx.py"},
    "starlette": {"devices/page_server.py"},
    "uvicorn": {"devices/page_server.py"},
    "segno": {"devices/browser.py"},
    "matplotlib": {"reporting.py"},
    "jinja2": {"reporting.py"},
    "scipy": {"planning/exact.py", "profiling/predictor.py"},
    "sklearn": {"recipes/data.py", "profiling/predictor.py"},
    "yaml": {"profiling/foreign/ai_hub.py"},
    "PIL": {"recipes/images.py"},
    "accelerate": {"training/loop.py"},
    "asyncssh": {"devices/ssh.py"},
    "transformers": {"recipes/hugging_face.py"},
    "timm": {"recipes/hugging_face.py"},
    "efficientnet_lite_pytorch": {"recipes/pretrained.py"},
}
"""The files that may import a heavy package. runner.py is a file of the device's, not of the package's."""

TEXT = {
    ".py",
    ".md",
    ".jinja",
    ".html",
    ".js",
    ".ts",
    ".css",
    ".sh",
    ".toml",
    ".kt",
    ".kts",
    ".swift",
    ".c",
    ".cpp",
    ".h",
}
MACHINE_PATH = re.compile(
    r"(?<![\w.~])(?:/(?:home|root|work|tmp|Users|mnt|opt|private|var|usr/local)/\w|[A-Z]:\\{1,2}\w)"
)


class Import(NamedTuple):
    """One imported name: where it stands, whether it runs on import, whether it runs at all."""

    line: int
    name: str
    at_module_level: bool
    for_types_only: bool


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert found
    return sorted(found)


MODULES = sources("maestro_edge")


def short(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    """`runtimes.gate` for maestro_edge/runtimes/gate.py; `runtimes` for its __init__; empty for the package's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[Import]:
    """Every import of a file, also those inside functions, TYPE_CHECKING blocks and import_module("...")."""
    return list(_imports(tree(path), at_module_level=True, for_types_only=False))


def _imports(node: ast.AST, *, at_module_level: bool, for_types_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(child.lineno, alias.name, at_module_level, for_types_only)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports are absolute"
            assert child.module is not None
            for alias in child.names:
                yield Import(child.lineno, f"{child.module}.{alias.name}", at_module_level, for_types_only)
        elif isinstance(child, ast.Call) and called(child) in ("import_module", "__import__") and child.args:
            first = child.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield Import(child.lineno, first.value, at_module_level, for_types_only)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        yield from _imports(
            child,
            at_module_level=at_module_level and not inside,
            for_types_only=for_types_only or guarded,
        )


def called(call: ast.Call) -> str:
    """The last name of what is called: `echo` of `typer.echo(...)`."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def row(module: str) -> int:
    """The row of a module, by the longest name in ROWS that it begins with."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in ROWS:
            return ROWS[name]
    raise AssertionError(f"{module} is in no row: add it to architecture.md and to ROWS")


def allowed(importer: str, imported: str) -> bool:
    """Rows above, siblings of the same package, and the two sideways steps."""
    tops = importer.split(".")[0], imported.split(".")[0]
    return tops[0] == tops[1] or row(imported) < row(importer) or tops in SIDEWAYS


@pytest.mark.parametrize("path", [path for path in MODULES if module_name(path)], ids=short)
def test_a_module_imports_only_from_rows_above_and_its_siblings(path: Path) -> None:
    """Also inside functions and for types."""
    importer = module_name(path)
    ours = [item for item in imports(path) if item.name.split(".")[0] == "maestro_edge"]

    wrong = [
        f"line {item.line}: {item.name}"
        for item in ours
        if item.name.count(".") == 0 or not allowed(importer, item.name.removeprefix("maestro_edge."))
    ]

    assert wrong == []


def test_the_solver_stands_below_the_rest_of_planning() -> None:
    """It knows options only, so it is among the siblings that may not import the others."""
    path = PACKAGE / "planning" / "greedy.py"

    ours = {item.name for item in imports(path) if item.name.startswith("maestro_edge")}

    assert ours <= {"maestro_edge.errors.BudgetError"}


def test_the_rules_refuse_what_they_are_for() -> None:
    """Upwards, sideways and unknown are told from downwards and siblings."""
    assert allowed("values", "errors.TableError")
    assert allowed("runtimes.gate", "devices.Device")
    assert allowed("training.loop", "training.penalty")
    assert not allowed("errors", "values.Rank")
    assert not allowed("devices.local", "runtimes.load")
    assert not allowed("ordered.layers", "planning.greedy.solve")
    assert not allowed("profiling.session", "training.train")
    assert not allowed("recipes.run", "cli.main")
    with pytest.raises(AssertionError, match="in no row"):
        row("utils")


def test_the_package_itself_imports_its_modules_for_types_only() -> None:
    """All else goes through its lazy table."""
    ours = [item for item in imports(PACKAGE / "__init__.py") if item.name.startswith("maestro_edge")]

    assert ours
    assert all(item.for_types_only for item in ours)


def test_the_runner_knows_nothing_of_maestro_edge() -> None:
    """It is copied alone to the device, which has numpy and one runtime."""
    names = {item.name.split(".")[0] for item in imports(PACKAGE / "runtimes" / "runner.py")}

    others = names - sys.stdlib_module_names

    assert others == {"numpy", "torch", "executorch", "ai_edge_litert", "tflite_runtime", "onnxruntime"}


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_a_heavy_package_is_imported_by_its_owner_inside_a_function(path: Path) -> None:
    """Who does not use a runtime needs not have it, and does not wait for it."""
    heavy = [item for item in imports(path) if item.name.split(".")[0] in OWNERS]

    elsewhere = [item for item in heavy if short(path) not in OWNERS[item.name.split(".")[0]]]
    early = [item for item in heavy if item.at_module_level and not item.for_types_only]

    assert elsewhere == []
    assert early == []


def test_every_owner_of_a_heavy_package_imports_it() -> None:
    """The table of owners names no file that is gone."""
    found: dict[str, set[str]] = {package: set() for package in OWNERS}
    for path in MODULES:
        for item in imports(path):
            if item.name.split(".")[0] in OWNERS:
                found[item.name.split(".")[0]].add(short(path))

    assert found == OWNERS


@pytest.mark.parametrize("statement", ["import maestro_edge", "import maestro_edge.cli"])
def test_importing_loads_neither_torch_nor_numpy_nor_pydantic_nor_a_runtime(statement: str) -> None:
    """A script or --help that needs no model does not wait for one."""
    slow = ["torch", "numpy", "pydantic", "safetensors", *OWNERS]
    script = f"{statement}, sys; print(*sorted(set({slow}) & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_every_public_name_is_the_one_of_its_home() -> None:
    """The lazy table covers __all__ exactly, and each name is in its home's __all__."""
    homes = [(home, name) for home, names in maestro_edge._HOMES.items() for name in names]

    assert sorted(name for _, name in homes) == sorted(maestro_edge.__all__)
    for home, name in homes:
        module = import_module(f"maestro_edge.{home}")
        assert name in module.__all__
        assert getattr(maestro_edge, name) is getattr(module, name)


def test_type_checkers_see_the_same_public_names() -> None:
    """The imports for types and the lazy table are two lists of one thing."""
    ours = [item.name for item in imports(PACKAGE / "__init__.py") if item.name.startswith("maestro_edge.")]

    assert sorted(ours) == sorted(
        f"maestro_edge.{home}.{name}" for home, names in maestro_edge._HOMES.items() for name in names
    )


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    """So that hasattr() and a mistyped import behave."""
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        maestro_edge.optimise  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_a_modules_all_names_what_it_has(path: Path) -> None:
    """Every name in __all__ is bound in the file."""
    body = tree(path).body
    listed = [
        ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    bound = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
    bound |= {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    bound |= {item.name.rpartition(".")[2] for item in imports(path)}

    assert len(listed) <= 1
    assert set(listed[0] if listed else ()) <= bound


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name != "cli"], ids=short)
def test_only_the_command_line_prints(path: Path) -> None:
    """Everything else returns or reports through a callback."""
    nodes = list(ast.walk(tree(path)))

    calls = {called(node) for node in nodes if isinstance(node, ast.Call)}
    written = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    names = {item.name.split(".")[0] for item in imports(path)}

    assert not calls & {"print", "echo", "secho", "Console"}
    assert not written & {"sys.stdout.write", "sys.stderr.write"}
    assert not names & {"rich", "typer"} or path.name == "terminal.py", "it builds what the command line prints"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_no_module_reads_a_pickle_but_the_restricted_one(path: Path) -> None:
    """A pickle runs what it names: CIFAR-10's go through a class that admits six, weights through torch's."""
    nodes = list(ast.walk(tree(path)))
    pickles = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

    used = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    imported = [item.name for item in imports(path) if item.name.split(".")[0] in pickles]
    allowing = [node for node in nodes if isinstance(node, ast.keyword) and node.arg == "allow_pickle"]

    loads = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]

    assert all("weights_only=True" in ast.unparse(node) for node in loads)
    assert len(loads) == sum(ast.unparse(node) == "torch.load" for node in nodes)
    assert "torch.load" not in used or short(path) == "recipes/pretrained.py"
    assert all(ast.unparse(node.value) == "False" for node in allowing)
    if short(path) == "recipes/data.py":
        assert imported == ["pickle"]
        assert {name for name in used if name.startswith("pickle.")} == {"pickle.Unpickler"}
        readers = [node for node in nodes if isinstance(node, ast.ClassDef) and "pickle" in ast.unparse(node)]
        assert ["find_class" in [getattr(item, "name", "") for item in node.body] for node in readers] == [True]
    else:
        assert imported == []


@pytest.mark.parametrize("path", sources("maestro_edge", "apps", "benchmarks"), ids=short)
def test_no_program_is_run_through_a_shell(path: Path) -> None:
    """A file name is never read as a command."""
    nodes = list(ast.walk(tree(path)))

    used = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    shells = [node.value.lineno for node in nodes if isinstance(node, ast.keyword) and node.arg == "shell"]

    assert not used & {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
    assert shells == []


@pytest.mark.parametrize("path", sources("apps"), ids=short)
def test_an_app_reads_a_bundle_and_imports_nothing_of_ours(path: Path) -> None:
    """The folder with its manifest is the whole interface."""
    ours = [item for item in imports(path) if item.name.split(".")[0] == "maestro_edge"]

    assert ours == []


def test_no_source_holds_a_path_of_one_machine_or_an_open_end() -> None:
    """What is committed runs anywhere and is done."""
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ("maestro_edge", "apps", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in TEXT and path.is_file() and not {"build", "dist", ".venv"} & set(path.parts)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line) or re.search(r"\b(TODO|FIXME)\b", line)
    ]

    assert wrong == []


@pytest.mark.parametrize("line", ['"/home/me/x"', "open('/tmp/a')", "cd /root/x", r"C:\\Users", "/work/main"])
def test_a_path_of_one_machine_is_found(line: str) -> None:
    """The rule above would see these."""
    assert MACHINE_PATH.search(line)


@pytest.mark.parametrize("line", ["/proc/cpuinfo", "https://x.org/home/y", "~/work/x", "#!/usr/bin/env python3"])
def test_what_is_on_every_machine_is_no_path_of_one(line: str) -> None:
    """Linux's own files and addresses are not meant."""
    assert not MACHINE_PATH.search(line)
