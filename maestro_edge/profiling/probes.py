"""write_probes(): all that a device must run which cannot be driven from here, as a folder that is carried to it.

layer-*, network-*   the files, one layer or one whole network each
probes.json          what each file is, and how to measure them
exported.json        what an interrupted export goes on from

apps/ios runs such a folder and writes `answers.json`; `profiling.answers` makes a latency table of that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, StringConstraints, model_validator
from torch import Tensor, nn

from maestro_edge.errors import DataError, ExportError
from maestro_edge.ordered import cut, ordered_layers, trace
from maestro_edge.profiling.measuring import PROBES_A_RUN
from maestro_edge.profiling.options import calibrating_ranks, layer_options, wanted_rows
from maestro_edge.runtimes import MeasuringProtocol, Runtime, digest
from maestro_edge.runtimes.probe import probe_input_shape
from maestro_edge.values import DENSE, LayerSpec, Network, Precision, Rank, Saved, Value

__all__ = ["PROBES", "FileName", "ProbeBundle", "Schedule", "Sha256", "write_probes"]

PROBES = "probes.json"
_EXPORTED = "exported.json"

Progress = Callable[[int, int, str], None]
FileName = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]{0,99}$")]
"""A plain name: nothing that leaves the folder."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ProbeFile(Value):
    """One file of the bundle; `sha256` of a folder is that of its lines "sha256  relative/path" sorted by path."""

    file: FileName
    sha256: Sha256
    input_shape: tuple[PositiveInt, ...]


class LayerProbe(Value):
    """The file that holds one layer at one rank, with random weights."""

    spec: LayerSpec
    rank: Rank
    file: FileName


class NetworkProbe(Value):
    """The file that holds the whole network at `ranks`; dense where a layer is not named."""

    ranks: dict[str, Rank]
    file: FileName


class Schedule(Value):
    """How the device measures: each stage is measured `runs` times, and a run goes over all files of its stage.

    In a run every file is loaded and warmed up, for `warmup_ms` and until two runs agree within 5 %, at most ten
    times as long. Then follow `rounds`: each visits all files in a new random order (`seed`), runs a file once
    untimed and then as often as fills `slice_ms`, 2 to 20 times, each timed: input fed, network run, output read.
    The `control` is in every stage: runs in which it is slower than in others are left out. Before a run a hot
    device cools, for `cool_s` at most, and between runs it rests for `pause_s`. Threads are the runtime's matter.
    """

    warmup_ms: NonNegativeFloat
    rounds: PositiveInt
    slice_ms: PositiveFloat
    runs: PositiveInt
    pause_s: NonNegativeFloat
    cool_s: NonNegativeFloat
    seed: int
    control: FileName
    stages: tuple[tuple[FileName, ...], ...]


class ProbeBundle(Saved):
    """What lies in a folder of probes, how to measure it, and what the times are of.

    The device reads `runtime`, `files` and `schedule`; the rest makes a table of its answers.
    """

    runtime: str
    exporter_version: str
    precision: Precision
    fingerprint: str
    schedule: Schedule
    files: tuple[ProbeFile, ...]
    layers: tuple[LayerProbe, ...]
    networks: tuple[NetworkProbe, ...]
    network: Network

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        """Everything named is there and is measured, and the control is the dense network."""
        files = [item.file for item in self.files]
        used = {item.file for item in self.layers} | {item.file for item in self.networks}
        measured = {name for stage in self.schedule.stages for name in stage}
        if len(set(files)) < len(files) or not set(files) == used == measured:
            raise ValueError("files, stages and what they are of name different files")
        control = self.schedule.control
        if any(control not in stage or len(set(stage)) < len(stage) for stage in self.schedule.stages):
            raise ValueError("a stage without the control, or with a file twice")
        if not self.networks or self.networks[0] != NetworkProbe(ranks={}, file=control):
            raise ValueError("the first network is not the dense one, the control")
        if self.network.fingerprint != self.fingerprint:
            raise ValueError(f"the network's fingerprint is {self.network.fingerprint}")
        return self


class Exported(Saved):
    """The finished files of an export that may have been interrupted; `key` holds all that they depend on."""

    key: str
    sha256: dict[str, str]


class _Export(NamedTuple):
    file: str
    input_shape: tuple[int, ...]
    write: Callable[[Path], None]


def write_probes(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    runtime: Runtime,
    *,
    folder: Path,
    name: str = "model",
    precision: Precision = "fp32",
    protocol: MeasuringProtocol | None = None,
    progress: Progress | None = None,
) -> ProbeBundle:
    """Export every distinct LayerSpec of an ordered model at its ranks and dense, and the networks that calibrate.

    These are the files that profile() measures where a runtime tells no operator times, at the runtime's assumed
    `rank_step`. What was exported before and is still whole is kept; `probes.json` comes last.

    Raises:
        DataError: the folder holds something else, or cannot be written.
        ExportError: the model or a layer cannot be exported in this precision, or it takes several inputs.
    """
    if len(inputs) != 1:
        raise ExportError(f"{name} takes {len(inputs)} inputs: probes are of networks that take one")
    protocol = protocol or MeasuringProtocol()
    network = trace(model, inputs, name=name)
    ranks = {layer: module.rank for layer, module in ordered_layers(model).items()}
    options = layer_options(network, ranks, step=runtime.rank_step)
    keys = sorted(wanted_rows(network, options), key=str)
    networks, exports = _networks(
        model, inputs, runtime, precision, calibrating_ranks(options, seed=protocol.seed)
    )
    layers = [
        LayerProbe(spec=spec, rank=rank, file=f"layer-{index:03}{runtime.suffix}")
        for index, (spec, rank) in enumerate(keys)
    ]
    exports += [
        _Export(item.file, probe_input_shape(item.spec), partial(_write_layer, runtime, item, precision))
        for item in layers
    ]
    about = [network.fingerprint, runtime.name, runtime.version, precision]
    key = _key([*about, [str(item) for item in keys], [item.model_dump() for item in networks]])
    bundle = ProbeBundle(
        runtime=runtime.name,
        exporter_version=runtime.version,
        precision=precision,
        fingerprint=network.fingerprint,
        schedule=_schedule(protocol, layers, networks),
        files=tuple(_exported(exports, Path(folder), key, progress)),
        layers=tuple(layers),
        networks=tuple(networks),
        network=network,
    )
    bundle.save(Path(folder) / PROBES)
    return bundle


def _networks(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    runtime: Runtime,
    precision: Precision,
    sets: Sequence[dict[str, Rank]],
) -> tuple[list[NetworkProbe], list[_Export]]:
    """A network that was drawn twice is one file, which counts twice, as in profile()."""
    shape = tuple(inputs[0].shape)

    def write(ranks: dict[str, Rank], path: Path) -> None:
        runtime.export(cut(model, ranks).eval(), inputs, path, precision)

    files: dict[str, str] = {}
    probes: list[NetworkProbe] = []
    exports: list[_Export] = []
    for ranks in sets:
        low = json.dumps({name: rank for name, rank in ranks.items() if rank != DENSE}, sort_keys=True)
        if low not in files:
            files[low] = f"network-{len(files):03}{runtime.suffix}"
            exports.append(_Export(files[low], shape, partial(write, ranks)))
        probes.append(NetworkProbe(ranks=ranks, file=files[low]))
    return probes, exports


def _write_layer(runtime: Runtime, probe: LayerProbe, precision: Precision, path: Path) -> None:
    runtime.write_probe(probe.spec, probe.rank, path, precision)


def _schedule(
    protocol: MeasuringProtocol, layers: Sequence[LayerProbe], networks: Sequence[NetworkProbe]
) -> Schedule:
    """Layers in stages that fit into a phone's memory, then the whole networks."""
    control = networks[0].file
    files = [item.file for item in layers]
    stages = [(control, *files[start : start + PROBES_A_RUN]) for start in range(0, len(files), PROBES_A_RUN)]
    same = protocol.model_dump(include={"warmup_ms", "rounds", "slice_ms", "pause_s", "cool_s", "seed"})
    return Schedule(
        **same,
        runs=protocol.most_runs,
        control=control,
        stages=(*stages, tuple(dict.fromkeys(item.file for item in networks))),
    )


def _exported(
    exports: Sequence[_Export], folder: Path, key: str, progress: Progress | None
) -> Iterator[ProbeFile]:
    """Each file once it is whole: its sha256 is noted when it was written, and must be that again."""
    known = _known(folder, key)
    Exported(key=key, sha256=known).save(folder / _EXPORTED)  # first: it tells whose folder this is
    for done, export in enumerate(exports, start=1):
        path = folder / export.file
        if not path.exists() or digest(path) != known.get(export.file):
            export.write(path)
            known[export.file] = digest(path)
            Exported(key=key, sha256=known).save(folder / _EXPORTED)
        if progress is not None:
            progress(done, len(exports), f"exporting {export.file}")
        yield ProbeFile(file=export.file, sha256=known[export.file], input_shape=export.input_shape)


def _known(folder: Path, key: str) -> dict[str, str]:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: choose a folder")
    path = folder / _EXPORTED
    if path.exists():
        exported = Exported.load(path)
        if exported.key == key:
            return dict(exported.sha256)
    elif not folder.exists() or all(item.name.startswith(".") for item in folder.iterdir()):
        return {}
    raise DataError(
        f"{folder} holds something else than these probes (another network, precision or version): "
        "choose another folder or empty it"
    )


def _key(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
