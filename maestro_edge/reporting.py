"""The report: figures and one self-contained page, drawn from saved values alone."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, Final

from maestro_edge.errors import MissingExtra
from maestro_edge.values import (
    DENSE,
    LatencyRow,
    LatencyTable,
    LayerPlan,
    LayerSpec,
    Manifest,
    MeasuredMs,
    RankPlan,
    Variant,
    write_atomically,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

__all__ = [
    "front_figure",
    "latency_figure",
    "pareto_figure",
    "prediction_figure",
    "ranks_figure",
    "write_front",
    "write_report",
]

# Okabe-Ito without its yellow, which is lost on white.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS: Final = "osD^vPX"
GREY: Final = "#767676"
MOST_PANELS: Final = 12
STYLE: Final = {
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a "$" in a layer's name is a dollar
    "svg.hashsalt": "maestro-edge",  # equal values give an equal page
}


@contextmanager
def _style() -> Iterator[None]:
    """Our look on matplotlib's own defaults, whatever the user's matplotlibrc says, and back again."""
    try:
        from matplotlib.style import context
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    with context(["default", STYLE]):
        yield


def _figure(width_in: float, height_in: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")


def _empty(message: str) -> Figure:
    figure = _figure(6, 1)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=GREY)
    return figure


def _looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name, in order of first appearance."""
    unique = enumerate(dict.fromkeys(names))
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in unique}


def _plan_labels(plans: Sequence[RankPlan]) -> list[str]:
    """One label a plan, never twice the same."""
    names = [plan.name for plan in plans]
    if len(set(names)) < len(names):
        names = [f"{i}: {plan.name} on {plan.device}" for i, plan in enumerate(plans, start=1)]
    return names


def _runtime(variant: Variant) -> str:
    return f"{variant.runtime} {variant.runtime_version}"


def _is_dense(variant: Variant) -> bool:
    """The reference file, not a plan whose loose budget happened to leave every layer dense."""
    return not variant.is_planned and all(rank == DENSE for rank in variant.ranks.values())


@_style()
def pareto_figure(manifest: Manifest) -> Figure:
    """Test accuracy against measured p50 of every file that was measured, with its p90 and its budget."""
    measured = [(variant, variant.measured_ms) for variant in manifest.variants if variant.measured_ms]
    if not measured:
        return _empty("no file was measured on this machine")
    figure = _figure(6.8, 4.8)
    axes = figure.subplots()
    looks = _looks(_runtime(variant) for variant, _ in measured)
    labels = [_draw_file(axes, variant, ms, *looks[_runtime(variant)]) for variant, ms in measured]
    axes.set(xlabel="measured p50 in ms, whisker to p90", ylabel="test accuracy in %")
    axes.margins(0.12, 0.16)
    low, high = axes.get_ylim()
    # At least four points high: a zoom into one image's worth of accuracy would look like a loss.
    axes.set_ylim(min(low, high - 4), max(high, 100 * max(v.accuracy for v, _ in measured) + 0.6))
    figure.legend(*_legend_entries([axes]), loc="outside upper left", ncols=2)
    _part_labels(figure, axes, labels, [ms.p90 for _, ms in measured])
    return figure


@_style()
def front_figure(variants: Sequence[Variant], beaten: Mapping[str, str]) -> Figure:
    """Validation accuracy against measured p50: the front a line, what is beaten hollow, dense a star."""
    figure = _figure(7.2, 4.8)
    axes = figure.subplots()
    points = [(v, v.measured_ms.p50, 100 * (v.validation_accuracy or 0)) for v in variants if v.measured_ms]
    front = sorted((ms, percent) for variant, ms, percent in points if variant.name not in beaten)
    axes.step([ms for ms, _ in front], [percent for _, percent in front], where="post", color=GREY, lw=1)
    looks = _looks(variant.precision for variant, _, _ in points)
    labels = []
    for variant, ms, percent in points:
        colour, marker = looks[variant.precision]
        legend, size = f"plans, {variant.precision}", 8
        if not variant.is_planned:
            legend, marker, size = f"dense, {variant.precision}", "*", 16
            labels.append(
                axes.annotate(legend, (ms, percent), (0, 0), textcoords="offset points", size=10, color=colour)
            )
        face = "none" if variant.name in beaten else colour
        axes.plot([ms], [percent], marker, ms=size, color=colour, mfc=face, mew=1.5, label=legend)
    axes.set(xlabel="measured p50 in ms; hollow: beaten in time and accuracy", ylabel="validation accuracy in %")
    axes.set_xscale("log")
    axes.margins(0.12, 0.16)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, high - 4), high)  # as in pareto_figure()
    _plain_ticks(axes)
    figure.legend(*_legend_entries([axes]), loc="outside upper left", ncols=2)
    _part_labels(figure, axes, labels, [label.xy[0] for label in labels])
    return figure


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def write_front(path: Path, variants: Sequence[Variant], beaten: Mapping[str, str]) -> Path:
    """The front as a PNG."""
    content = io.BytesIO()
    front_figure(variants, beaten).savefig(content, format="png", dpi=150)
    write_atomically(path, content.getvalue())
    return path


def _draw_file(axes: Axes, variant: Variant, ms: MeasuredMs, colour: str, marker: str) -> Annotation:
    """The file's mark, whisker and budget; its label is still to be placed."""
    percent, whisker = 100 * variant.accuracy, [[0.0], [max(0.0, ms.p90 - ms.p50)]]
    size, legend, text = 8, _runtime(variant), variant.name
    if _is_dense(variant):
        marker, size, legend, text = "*", 16, f"{legend}, dense", DENSE
    axes.errorbar([ms.p50], [percent], xerr=whisker, fmt=marker, ms=size, color=colour, capsize=3, label=legend)
    if variant.budget_ms is not None:
        axes.plot([variant.budget_ms], [percent], "|", ms=26, mew=1.5, color=colour, alpha=0.45)
        text = f"≤ {variant.budget_ms:g} ms"
    return axes.annotate(text, (ms.p50, percent), (0, 0), textcoords="offset points", size=10, color=colour)


def _legend_entries(panels: Iterable[Axes]) -> tuple[list[Artist], list[str]]:
    """Each label once, however many artists and panels carry it."""
    legends = [axes.get_legend_handles_labels() for axes in panels]
    entries = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    return list(entries.values()), list(entries)


def _part_labels(figure: Figure, axes: Axes, labels: list[Annotation], p90_ms: list[float]) -> None:
    """Move each label to the first place around its point where it covers no whisker and no other label."""
    from matplotlib.transforms import Bbox

    for label in labels:
        label.set_in_layout(False)  # or the layout would move the points away from their labels
    figure.draw_without_rendering()  # positions are only known once the layout has run
    ends = [(label.xy, (end, label.xy[1])) for label, end in zip(labels, p90_ms, strict=True)]
    taken = [Bbox(axes.transData.transform(end)).padded(8) for end in ends]
    places = [(dx, dy) for dy in (9, -17, 21, -29, 33) for dx in (7, -7, 32)]
    for label in labels:
        for dx, dy in places:
            label.set(position=(dx, dy), ha="left" if dx > 0 else "right")
            box = label.get_window_extent()
            if axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and not box.count_overlaps(taken):
                break
        taken.append(Bbox(box))


@_style()
def latency_figure(table: LatencyTable, plans: Sequence[RankPlan]) -> Figure:
    """The table's latency against rank, a panel a layer shape, and what the plans made on it chose."""
    labelled = zip(_plan_labels(plans), plans, strict=True)
    own = {label: plan for label, plan in labelled if _made_on(plan, table)}
    specs = _panel_specs(table, own.values())
    if not specs:
        return _empty("no layer was profiled at several ranks")
    rows = math.ceil(len(specs) / 2)
    figure = _figure(7.2, 1.2 + 2.4 * rows)
    panels = figure.subplots(rows, 2, squeeze=False).flatten()
    panels[-1].set_axis_off()  # the odd one out, if nothing is drawn into it
    for axes, spec in zip(panels, specs, strict=False):
        axes.set_axis_on()
        _draw_rows(axes, table, spec)
        _draw_choices(axes, spec, own)
        axes.set(title=str(spec), xlabel="rank")
        axes.set_ylim(bottom=0)
    figure.supylabel(f"latency in ms, {table.source}", fontsize=11)
    figure.legend(*_legend_entries(panels), loc="outside lower center", ncols=2, labelspacing=0.7)
    return figure


def _made_on(plan: RankPlan, table: LatencyTable) -> bool:
    made = (plan.device, plan.runtime, plan.runtime_version, plan.precision, plan.threads)
    return made == (table.device.name, table.runtime, table.runtime_version, table.precision, table.threads)


def _panel_specs(table: LatencyTable, plans: Iterable[RankPlan]) -> list[LayerSpec]:
    """Shapes that the plans use, else those timed at several ranks; of too many, the slowest when dense."""
    dense_ms = {layer.spec: layer.dense_ms for plan in plans for layer in plan.layers}
    if not dense_ms:
        dense_ms = {r.spec: r.ms for r in table.rows if r.rank == DENSE and len(table.ranks(r.spec)) > 1}
    kept = sorted(dense_ms, key=lambda spec: -dense_ms[spec])[:MOST_PANELS]
    return [spec for spec in dense_ms if spec in kept]


def _quartiles_ms(row: LatencyRow) -> tuple[float, float]:
    """The interquartile range, or the row's time twice where there are no raw samples."""
    if len(row.samples_ms) < 2:
        return row.ms, row.ms
    low, _, high = quantiles(row.samples_ms, n=4, method="inclusive")
    return low, high


def _draw_rows(axes: Axes, table: LatencyTable, spec: LayerSpec) -> None:
    rows = {rank: table.row(spec, rank) for rank in table.ranks(spec)}
    dense = rows.pop(DENSE, None)
    if rows:
        ranks = [int(rank) for rank in rows]
        low, high = zip(*map(_quartiles_ms, rows.values()), strict=True)
        axes.plot(ranks, [row.ms for row in rows.values()], ".-", color=GREY, label="low rank, median")
        axes.fill_between(ranks, low, high, color=GREY, alpha=0.25, lw=0, label="interquartile range")
    if dense:
        axes.axhline(dense.ms, ls="--", color="#000000", lw=1.2, label="dense, median")
        axes.axhspan(*_quartiles_ms(dense), color=GREY, alpha=0.25, lw=0)


def _draw_choices(axes: Axes, spec: LayerSpec, plans: dict[str, RankPlan]) -> None:
    """Rings that grow from plan to plan: plans that chose the same rank stay apart."""
    for i, (label, (colour, _)) in enumerate(_looks(plans).items()):
        chosen = [layer for layer in plans[label].layers if layer.spec == spec]
        if chosen:
            ranks, ms = [_rank_number(layer) for layer in chosen], [layer.ms for layer in chosen]
            size = 6 + 2.5 * (i % len(COLOURS))
            axes.plot(ranks, ms, "o", mfc="none", mew=2, ms=size, color=colour, label=label)


def _rank_number(layer: LayerPlan) -> int:
    return layer.spec.full_rank if layer.rank == DENSE else layer.rank


@_style()
def ranks_figure(plans: Sequence[RankPlan]) -> Figure:
    """A heat map, layers x plans: the rank as a share of the full one; dense cells are hatched."""
    names = list(dict.fromkeys(layer.name for plan in plans for layer in plan.layers))
    if not names:
        return _empty("no plan was made")
    figure = _figure(max(5.2, 3.4 + 0.9 * len(plans)), 2.4 + 0.3 * len(names))
    axes = figure.subplots()
    shares = [[math.nan] * len(plans) for _ in names]
    for x, plan in enumerate(plans):
        for layer in plan.layers:
            y = names.index(layer.name)
            shares[y][x] = _rank_number(layer) / layer.spec.full_rank
            _draw_cell(axes, x, y, layer, light=shares[y][x] < 0.55)
    heat = axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", lw=1)
    figure.colorbar(heat, label="rank / full rank, hatched: dense", location="top", aspect=80)
    # the end of a long dotted name is what tells layers apart
    short = [name if len(name) < 29 else f"…{name[-28:]}" for name in names]
    axes.set_xticks([x + 0.5 for x in range(len(plans))], _plan_labels(plans), rotation=35, ha="right")
    axes.set_yticks([y + 0.5 for y in range(len(names))], short)
    axes.tick_params(length=0)
    axes.invert_yaxis()
    return figure


def _draw_cell(axes: Axes, x: int, y: int, layer: LayerPlan, *, light: bool) -> None:
    behind = None
    if layer.rank == DENSE:
        axes.bar(x + 0.5, 1, width=1, bottom=y, fill=False, edgecolor="white", hatch="///", lw=1, zorder=2)
        behind = {"facecolor": "#08306B", "edgecolor": "none", "pad": 1.5}
    colour, told = "black" if light else "white", f"{layer.rank}{' int8' if layer.spec.int8 else ''}"
    axes.text(x + 0.5, y + 0.5, told, ha="center", va="center", color=colour, size=10, bbox=behind)


@_style()
def prediction_figure(manifest: Manifest, tables: Sequence[LatencyTable]) -> Figure:
    """Predicted against measured ms of the networks that calibrated the tables and of the exported files.

    The MAPE in the title is that of the files alone: the networks were fitted. Modelled tables are left out.
    """
    exported = _grouped(
        (f"files, {_runtime(variant)}", variant.measured_ms.p50, variant.predicted_ms)
        for variant in manifest.variants
        if variant.measured_ms and variant.predicted_ms
    )
    fitted = _grouped(
        (f"calibration, {table.title} ({table.source})", net.timing.median_ms, fit.whole_ms(net.layers_ms))
        for table in tables
        if table.source != "modelled"
        for fit in table.calibrations
        for net in fit.networks
    )
    groups = exported | fitted
    every = [ms for points in groups.values() for point in points for ms in point]
    if not every:
        return _empty("nothing was both predicted and measured")
    figure = _figure(6.2, 6.6)
    axes = figure.subplots()
    ends = (0.85 * min(every), 1.1 * max(every))
    low, high = ([scale * end for end in ends] for scale in (0.95, 1.05))
    axes.fill_between(ends, low, high, color=GREY, alpha=0.18, lw=0, label="within 5 %")
    axes.plot(ends, ends, color=GREY, lw=1, label="predicted = measured")
    for label, (colour, marker) in _looks(groups).items():
        face = colour if label in exported else "none"
        points = zip(*groups[label], strict=True)
        axes.plot(*points, marker, ms=8, color=colour, mfc=face, mew=1.5, label=label)
    axes.set(xlabel="measured in ms", ylabel="predicted in ms", xlim=ends, ylim=ends, aspect="equal")
    axes.set_title(_mape_title([point for points in exported.values() for point in points]))
    figure.legend(loc="outside lower center")
    return figure


def _grouped(points: Iterable[tuple[str, float, float]]) -> dict[str, list[tuple[float, float]]]:
    """(measured, predicted) ms under their label."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for label, measured_ms, predicted_ms in points:
        groups.setdefault(label, []).append((measured_ms, predicted_ms))
    return groups


def _mape_title(points: list[tuple[float, float]]) -> str:
    if not points:
        return "no exported file was both predicted and measured"
    mape = fmean(abs(predicted - measured) / measured for measured, predicted in points)
    return f"MAPE {100 * mape:.1f} % over {len(points)} exported file{'s' if len(points) > 1 else ''}"


def write_report(
    path: Path, *, manifest: Manifest, plans: Sequence[RankPlan], tables: Sequence[LatencyTable]
) -> Path:
    """Write one HTML page that needs no other file and no network: equal values give equal bytes.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed.
        DataError: the folder cannot be written.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtra("jinja2", "report") from error
    # names of layers and devices come from elsewhere: everything is escaped
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    sources = [next((t.source for t in tables if _made_on(plan, t)), None) for plan in plans]
    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        manifest=manifest,
        plans=list(zip(_plan_labels(plans), plans, sources, strict=True)),
        tables=tables,
        dense={_runtime(variant): variant for variant in manifest.variants if _is_dense(variant)},
        pareto=_data_uri(pareto_figure(manifest)),
        latencies=[(table, _data_uri(latency_figure(table, plans))) for table in tables],
        ranks=_data_uri(ranks_figure(plans)),
        prediction=_data_uri(prediction_figure(manifest, tables)),
    )
    write_atomically(path, page.encode())
    return path


@_style()
def _data_uri(figure: Figure) -> str:
    """The figure as an SVG image: in an <img> its element ids cannot clash with another figure's."""
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(content.getvalue()).decode()}"
