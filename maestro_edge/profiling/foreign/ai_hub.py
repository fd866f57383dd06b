"""Qualcomm AI Hub Models' perf.yaml: whole networks by precision, component, device and runtime; no layers.

precisions → float → components → NAME → performance_metrics → DEVICE → tflite → inference_time_milliseconds. Which
statistic that is, how often was measured and the threads are not told; "float" may be fp16 on the device.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from maestro_edge.errors import MissingExtra, TableError
from maestro_edge.profiling.foreign.reading import checked_ms, read_text
from maestro_edge.profiling.foreign.told import Facts, Told
from maestro_edge.values import NetworkRow, Stated

__all__ = ["read"]

_DEEPEST = 30


def read(path: Path, device: str | None, runtime: str | None, precision: str | None) -> Told:
    """The networks of one device and runtime; `precision` is the file's own word, such as float or w8a8.

    Raises:
        TableError: not such a file, or it has no such device, runtime or precision.
        MissingExtra: PyYAML is not installed.
    """
    content = _mapping(_load(path), str(path))
    if "precisions" not in content:
        raise TableError(f"{path}: no 'precisions': a perf.yaml of AI Hub Models before 2025 is not read")
    word, own = _chosen(content["precisions"], precision, f"{path}: precisions", "--column")
    networks, versions = [], set()
    for name, component in _mapping(own.get("components"), f"{path}: {word}.components").items():
        where = f"{path}: {word}.{name}.performance_metrics"
        metrics = _mapping(_mapping(component, f"{path}: {word}.{name}").get("performance_metrics"), where)
        chosen, by_runtime = _chosen(metrics, device, where, "--device")
        path_name, found = _chosen(by_runtime, runtime, f"{where}.{chosen}", "--runtime")
        device, runtime = chosen, path_name
        key = "inference_time_milliseconds"
        stated = Stated(ms=checked_ms(found.get(key), f"{where}.{chosen}.{path_name}", key), statistic="not told")
        networks.append(NetworkRow(network=str(name), timing=stated))
        tools = found.get("tool_versions")
        versions.add(", ".join(f"{k} {v}" for k, v in sorted(tools.items())) if isinstance(tools, dict) else "")
    version = versions.pop() if len(versions) == 1 else ""
    return Told(Facts(device=device, runtime=runtime, runtime_version=version or None), networks=tuple(networks))


def _load(path: Path) -> Any:
    text = read_text(path)
    try:
        yaml: Any = import_module("yaml")
    except ImportError as error:
        raise MissingExtra("pyyaml", "predict") from error
    try:
        _refuse_bombs(yaml, text, path)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TableError(f"{path}: not plain YAML ({' '.join(str(error).split())[:160]})") from error


def _refuse_bombs(yaml: Any, text: str, path: Path) -> None:
    """Aliases make a small file huge and nesting makes the parser slow; perf.yaml needs neither."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        name = type(token).__name__
        depth += name.endswith("StartToken") - name.endswith("EndToken")
        if name == "AliasToken" or depth > _DEEPEST:
            raise TableError(f"{path}: has YAML aliases, or nests {_DEEPEST} deep: no perf.yaml does")


def _mapping(value: object, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TableError(f"{where}: a {type(value).__name__}, not a mapping: is this a perf.yaml?")
    return value


def _chosen(value: object, wanted: str | None, where: str, option: str) -> tuple[str, dict[Any, Any]]:
    """The wanted entry, or the only one."""
    entries = _mapping(value, where)
    name = next(iter(entries)) if wanted is None and len(entries) == 1 else wanted
    if name not in entries:
        raise TableError(f"{where}: give {option}, one of {', '.join(map(str, entries))[:400]}")
    return str(name), _mapping(entries[name], f"{where}.{name}")
