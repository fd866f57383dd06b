"""The report page and its figures, drawn from a small network on a fictional phone."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from maestro_edge.errors import MissingExtra
from maestro_edge.reporting import (
    latency_figure,
    pareto_figure,
    prediction_figure,
    ranks_figure,
    write_report,
)
from maestro_edge.values import (
    DENSE,
    Budget,
    Calibration,
    DeviceFacts,
    InputSpec,
    LatencyRow,
    LatencyTable,
    LayerPlan,
    LayerSpec,
    Manifest,
    MeasuredMs,
    NetworkTiming,
    Promise,
    Rank,
    RankPlan,
    Timing,
    Variant,
)

ROOT = Path(__file__).parents[1]
PHONE = DeviceFacts(name="pixel-8", soc="Tensor G3", arch="aarch64", cores=9, os="Android 15", memory_gib=7.4)
VERSIONS = {"executorch": "1.5.1", "litert": "2.3.0", "coreml": "9.0"}
LAYERS = {
    "layer1.conv1": LayerSpec(
        kind="conv2d", in_channels=64, out_channels=64, kernel=(3, 3), padding=(1, 1), input_size=(32, 32)
    ),
    "layer2.conv1": LayerSpec(
        kind="conv2d",
        in_channels=64,
        out_channels=128,
        kernel=(3, 3),
        stride=(2, 2),
        padding=(1, 1),
        input_size=(32, 32),
    ),
    "layer3.conv1": LayerSpec(
        kind="conv2d",
        in_channels=128,
        out_channels=256,
        kernel=(3, 3),
        stride=(2, 2),
        padding=(1, 1),
        input_size=(16, 16),
    ),
    "fc1": LayerSpec(kind="linear", in_channels=4096, out_channels=256),
}
OTHER_MS = 0.4
PLANNED: dict[float, tuple[Rank, ...]] = {
    3.0: (DENSE, 64, 96, 64),
    2.0: (32, 40, 64, 32),
    1.5: (16, 24, 32, 32),
}


def layer_ms(spec: LayerSpec, rank: Rank) -> float:
    """About 30 GMACs a second and 20 µs a call."""
    calls = 1 if rank == DENSE else 2
    return spec.macs(rank) / 30e6 + 0.02 * calls


def timing(ms: float) -> Timing:
    return Timing.of([ms * factor for factor in (0.97, 0.99, 1.0, 1.01, 1.06)])


def profiled_ranks(spec: LayerSpec) -> list[Rank]:
    return [*(spec.full_rank * eighths // 8 for eighths in range(1, 8)), DENSE]


def table(runtime: str = "executorch", *, calibrated: bool = True) -> LatencyTable:
    rows = [
        LatencyRow(spec=spec, rank=rank, method="in-model", timing=timing(layer_ms(spec, rank)))
        for spec in LAYERS.values()
        for rank in profiled_ranks(spec)
    ]
    return LatencyTable(
        source="measured",
        device=PHONE,
        runtime=runtime,
        runtime_version=VERSIONS[runtime],
        precision="fp32",
        threads=1,
        created="2026-02-03T10:00:00Z",
        rows=tuple(rows),
        calibrations=(calibration(),) if calibrated else (),
    )


def calibration() -> Calibration:
    networks = [
        NetworkTiming(ranks={}, layers_ms=ms, timing=timing((1.02 * ms + OTHER_MS) * error))
        for ms, error in ((0.9, 1.01), (1.6, 0.97), (2.4, 1.02), (3.1, 1.0))
    ]
    return Calibration(
        network="0123456789ab",
        rest_ms=OTHER_MS,
        slope=1.02,
        intercept_ms=0.0,
        loo_mape=0.021,
        networks=tuple(networks),
    )


def plan(budget_ms: float, runtime: str = "executorch", *, names: Sequence[str] = tuple(LAYERS)) -> RankPlan:
    layers = [
        LayerPlan(
            name=name,
            spec=spec,
            rank=rank,
            ms=layer_ms(spec, rank),
            dense_ms=layer_ms(spec, DENSE),
            loss_increase=0.01,
            charge=0.01,
        )
        for name, spec, rank in zip(names, LAYERS.values(), PLANNED[budget_ms], strict=True)
    ]
    predicted_ms, dense_ms = (
        sum(ms) + OTHER_MS for ms in zip(*((layer.ms, layer.dense_ms) for layer in layers), strict=True)
    )
    return RankPlan(
        network="0123456789ab",
        network_name="small-resnet",
        device=PHONE.name,
        runtime=runtime,
        runtime_version=VERSIONS[runtime],
        precision="fp32",
        threads=1,
        promises=(
            Promise(
                budget=Budget(quantity="ms", limit=budget_ms),
                planned=0.97 * budget_ms,
                predicted=predicted_ms,
                dense=dense_ms,
            ),
        ),
        least_charge=0.01,
        predicted_ms=predicted_ms,
        dense_ms=dense_ms,
        layers=tuple(layers),
        other_ms=OTHER_MS,
        other_params=12_345,
        other_macs=1_234_567,
    )


def variant(
    runtime: str,
    accuracy: float,
    *,
    budget_ms: float | None = None,
    error: float = 1.0,
    measured: bool = True,
) -> Variant:
    """A file; its measured time is `error` times the predicted one."""
    made = plan(budget_ms or 3.0, runtime)
    predicted_ms = made.predicted_ms if budget_ms else made.dense_ms
    p50 = predicted_ms * error
    ranks: dict[str, Rank] = made.ranks if budget_ms else dict.fromkeys(LAYERS, DENSE)
    name = made.name if budget_ms else f"{runtime}-dense"
    return Variant(
        name=name,
        runtime=runtime,
        runtime_version=VERSIONS[runtime],
        precision="fp32",
        file=f"{name}.bin",
        sha256="0" * 64,
        size_bytes=6_543_210,
        budget_ms=budget_ms,
        predicted_ms=predicted_ms,
        measured_ms=MeasuredMs(p50=p50, p90=1.06 * p50, n=300) if measured else None,
        accuracy=accuracy,
        max_abs_error=3.2e-6,
        sqnr_db=118.4,
        top1_agreement=1.0,
        params=1_600_000,
        macs=42_000_000,
        ranks=ranks,
        planned_on=f"{PHONE.name}/{runtime}" if budget_ms else None,
    )


def manifest(*variants: Variant) -> Manifest:
    return Manifest(
        device=PHONE,
        model="small-resnet",
        labels=("cat", "dog"),
        input=InputSpec(shape=(1, 3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
        variants=variants,
    )


def bundle() -> Manifest:
    """Two runtimes measured at up to three budgets, one missed, and a Core ML file that cannot run here."""
    return manifest(
        variant("executorch", 0.913, error=1.01),
        variant("executorch", 0.911, budget_ms=3.0, error=1.02),
        variant("executorch", 0.904, budget_ms=2.0, error=1.01),
        variant("executorch", 0.887, budget_ms=1.5, error=1.6),
        variant("litert", 0.913, error=0.9),
        variant("litert", 0.911, budget_ms=3.0, error=0.88),
        variant("litert", 0.904, budget_ms=2.0, error=0.96),
        variant("coreml", 0.904, budget_ms=2.0, measured=False),
    )


def plans() -> list[RankPlan]:
    return [plan(budget_ms) for budget_ms in PLANNED]


class Page(HTMLParser):
    """What the tests ask of a page: its words, its links, its images; open tags must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words = ""
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in {"br", "img", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The full page; drawing it takes a second, so it is drawn once."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    tables = [table(), table("litert", calibrated=False)]
    return write_report(path, manifest=bundle(), plans=plans(), tables=tables).read_text(encoding="utf-8")


def whiskers(axes: Axes) -> list[ErrorbarContainer]:
    return [container for container in axes.containers if isinstance(container, ErrorbarContainer)]


def lines(axes: Axes, marker: str) -> list[Line2D]:
    return [line for line in axes.get_lines() if line.get_marker() == marker]


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def decoded(uri: str) -> str:
    return base64.b64decode(uri.partition("base64,")[2]).decode()


class TestPage:
    def test_names_every_file(self, page: str) -> None:
        """Every variant stands on the page with its file and its runtime's version."""
        words = Page(page).words

        assert [v.name for v in bundle().variants if v.name not in words or v.file not in words] == []
        assert all(f"{runtime} {version}" in words for runtime, version in VERSIONS.items())

    def test_is_well_formed(self, page: str) -> None:
        """All tags are closed in order, and there is one image a figure: three, and one a table."""
        parsed = Page(page)

        assert parsed.open == []
        assert parsed.tags.count("img") == 3 + 2
        assert parsed.tags.count("details") == len(plans())

    def test_works_offline(self, page: str) -> None:
        """Nothing on the page or in its images is fetched from anywhere."""
        links = Page(page).links

        assert "http://" not in page and "https://" not in page
        assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
        assert [link for link in links if re.search(r"(href|src)=.https?:|url\(.?https?:", decoded(link))] == []

    def test_judges_budgets_by_what_was_measured(self, page: str) -> None:
        """Of five measured budgets one is missed; Core ML is said not to have run here."""
        words = Page(page).words
        late_ms = 1.6 * plan(1.5).predicted_ms - 1.5

        assert "4 of 5 measured budgets kept; 1 more not measured on this machine" in words
        assert f"missed by {late_ms:.3f} ms" in words
        assert re.search(r"coreml-2ms.bin\s+coreml 9.0.*not measured\s*on this machine", words, re.DOTALL)

    def test_speed_up_is_against_the_same_runtime(self, page: str) -> None:
        """A LiteRT file is compared with the dense LiteRT file, not with the slower ExecuTorch one."""
        dense_ms, fast_ms = 0.9 * plan(2.0).dense_ms, 0.96 * plan(2.0).predicted_ms

        row = page[page.index("litert-2ms.bin") :].partition("</tr>")[0]

        assert f"<td>{dense_ms / fast_ms:.2f}\N{MULTIPLICATION SIGN}</td>" in row

    def test_totals_add_up(self, page: str) -> None:
        """The last line of a plan's table holds all parameters, in thousands, and the predicted time."""
        made = plans()[0]
        params = made.other_params + sum(layer.spec.params(layer.rank) for layer in made.layers)

        row = page[page.index("whole network, predicted") :].partition("</tr>")[0]

        assert f"<td>{params / 1e3:,.1f}</td>" in row
        assert f"<td>{made.predicted_ms:.3f}</td><td>{made.dense_ms:.3f}</td>" in row

    def test_escapes_names(self, tmp_path: Path) -> None:
        """A layer's name and a device's name come from elsewhere and cannot inject markup."""
        evil = "<script>alert('$x')</script>"
        made = plan(2.0, names=(evil, "a", "b", "c"))
        facts = PHONE.model_copy(update={"name": evil})
        shown = bundle().model_copy(update={"device": facts})

        path = write_report(tmp_path / "r.html", manifest=shown, plans=[made], tables=[])
        parsed = Page(path.read_text(encoding="utf-8"))

        assert "script" not in parsed.tags
        assert parsed.words.count(evil) > 2
        assert all("<script" not in decoded(link) for link in parsed.links)

    def test_equal_values_give_equal_bytes(self, tmp_path: Path) -> None:
        """A report that is written again shows no difference to a version control."""
        small = manifest(variant("litert", 0.9))

        first, second = (
            write_report(tmp_path / name, manifest=small, plans=[], tables=[]).read_bytes()
            for name in ("a.html", "b.html")
        )

        assert first == second

    @pytest.mark.parametrize(
        ("measured", "tables"),
        [(True, []), (False, [table(calibrated=False)])],
        ids=["no-table", "not-measured-nor-calibrated"],
    )
    def test_is_sound_when_little_is_known(
        self, tmp_path: Path, measured: bool, tables: list[LatencyTable]
    ) -> None:
        """Only dense files, no plan, no calibration: a page that says so, without holes."""
        shown = manifest(variant("coreml", 0.9, measured=measured))

        path = write_report(tmp_path / "r.html", manifest=shown, plans=[], tables=tables)
        parsed = Page(path.read_text(encoding="utf-8"))

        assert parsed.open == []
        assert "No plan was made." in parsed.words
        assert not re.search(r"\bNone\b|\bnan\b|Undefined", parsed.words)

    def test_never_calls_modelled_measured(self, tmp_path: Path) -> None:
        """The layers' column of a plan made on a modelled table says so."""
        modelled = table().model_copy(update={"source": "modelled"})
        made = plan(2.0)
        made = made.model_copy(update={"layers": made.layers[:1]})

        path = write_report(tmp_path / "r.html", manifest=manifest(), plans=[made], tables=[modelled])
        text = path.read_text(encoding="utf-8")

        assert ">modelled ms</th>" in text
        assert ">measured ms</th>" not in text


class TestParetoFigure:
    def test_marks_every_measured_file(self) -> None:
        """Seven measured files have a whisker, the dense ones a star, the others a tick at their budget."""
        axes = pareto_figure(bundle()).axes[0]

        assert len(whiskers(axes)) == 7
        assert len(lines(axes, "*")) == 2
        budgets = [line for line in lines(axes, "|") if line.get_alpha()]  # the caps of whiskers have none
        assert [points(line)[0][0] for line in budgets] == [3.0, 2.0, 1.5, 3.0, 2.0]

    def test_places_a_file_at_its_measured_time(self) -> None:
        """x is the measured p50, not the predicted time; the whisker ends at p90."""
        file = variant("executorch", 0.887, budget_ms=1.5, error=1.6)
        assert file.measured_ms is not None

        mark, _, (whisker,) = whiskers(pareto_figure(manifest(file)).axes[0])[0]

        assert mark is not None
        assert points(mark)[0] == pytest.approx((file.measured_ms.p50, 88.7))
        assert whisker.get_segments()[0][1][0] == pytest.approx(file.measured_ms.p90)

    def test_one_colour_a_runtime(self) -> None:
        """Dense and planned files of a runtime share a colour that no other runtime has."""
        figure = pareto_figure(bundle())

        colours = [text.get_color() for text in figure.axes[0].texts]
        assert colours == [colours[0]] * 4 + [colours[4]] * 3
        assert not same_color(colours[0], colours[4])
        assert sorted(legend(figure)) == [
            "executorch 1.5.1",
            "executorch 1.5.1, dense",
            "litert 2.3.0",
            "litert 2.3.0, dense",
        ]

    def test_labels_stay_apart(self) -> None:
        """Labels name budgets, lie inside of the axes and do not cover each other."""
        axes = pareto_figure(bundle()).axes[0]
        boxes = [text.get_window_extent() for text in axes.texts]

        assert [text.get_text() for text in axes.texts][:3] == ["dense", "≤ 3 ms", "≤ 2 ms"]
        assert all(box.count_overlaps(boxes) == 1 for box in boxes)
        assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)


class TestLatencyFigure:
    def test_one_panel_a_spec(self) -> None:
        """Four shapes, four panels: the seven measured ranks, a dashed dense line, a ring a plan."""
        figure = latency_figure(table(), plans())

        assert [axes.get_title() for axes in figure.axes] == [str(spec) for spec in LAYERS.values()]
        for axes in figure.axes:
            assert len(points(lines(axes, ".")[0])) == 7
            assert [line.get_linestyle() for line in lines(axes, "None")] == ["--"]
            assert len(lines(axes, "o")) == len(plans())
        assert legend(figure)[3:] == [made.name for made in plans()]

    def test_dense_choice_lies_at_full_rank(self) -> None:
        """A layer left dense is marked on the dashed line at its full rank."""
        axes = latency_figure(table(), plans()).axes[0]
        spec = LAYERS["layer1.conv1"]

        ring = lines(axes, "o")[0]

        assert points(ring) == [(spec.full_rank, layer_ms(spec, DENSE))]

    def test_leaves_out_plans_of_another_table(self) -> None:
        """A plan made for LiteRT chose nothing on an ExecuTorch table: the shapes are shown without rings."""
        figure = latency_figure(table(), [plan(2.0, "litert")])

        assert len(figure.axes) == len(LAYERS)
        assert not any(lines(axes, "o") for axes in figure.axes)

    def test_shows_the_slowest_twelve(self) -> None:
        """Of fourteen shapes the two fastest are left out; the others keep the order of the network."""
        specs = [LayerSpec(kind="linear", in_channels=64 * i, out_channels=64) for i in range(1, 15)]
        made = plan(2.0)
        layers = [
            made.layers[0].model_copy(update={"name": str(spec), "spec": spec, "dense_ms": spec.macs() / 1e6})
            for spec in specs
        ]
        made = made.model_copy(update={"layers": tuple(layers)})

        figure = latency_figure(table(), [made])

        assert [axes.get_title() for axes in figure.axes] == [str(spec) for spec in specs[2:]]

    def test_says_where_the_numbers_come_from(self) -> None:
        """The axis of an imported table does not say measured."""
        figure = latency_figure(table().model_copy(update={"source": "imported"}), plans())

        assert figure.get_supylabel() == "latency in ms, imported"


class TestRanksFigure:
    def test_cells_show_ranks(self) -> None:
        """Layers x plans cells with the rank in each; only the dense one is hatched."""
        axes = ranks_figure(plans()).axes[0]

        bars = [bar for group in axes.containers if isinstance(group, BarContainer) for bar in group]
        assert [text.get_text() for text in axes.texts][:4] == ["dense", "64", "96", "64"]
        assert len(axes.texts) == len(LAYERS) * len(plans())
        assert [bar.get_hatch() for bar in bars] == ["///"]

    def test_colour_is_the_share_of_the_full_rank(self) -> None:
        """Dense counts as 1; 64 of 128 as a half."""
        axes = ranks_figure(plans()).axes[0]

        shares = axes.collections[0].get_array()

        assert shares is not None
        assert list(shares[:, 0]) == pytest.approx([1.0, 64 / 128, 96 / 256, 64 / 256])

    def test_tells_plans_of_one_name_apart(self) -> None:
        """Two devices, one budget: the device stands in the label."""
        other = plan(2.0).model_copy(update={"device": "pi-5"})

        axes = ranks_figure([plan(2.0), other]).axes[0]

        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels == ["1: executorch-2ms on pixel-8", "2: executorch-2ms on pi-5"]


class TestPredictionFigure:
    def test_title_is_the_error_over_files(self) -> None:
        """A file 10 % slower than predicted is predicted 9.1 % too low; calibration does not dilute it."""
        shown = manifest(variant("executorch", 0.9, budget_ms=2.0, error=1.1))

        figure = prediction_figure(shown, [table()])

        assert figure.axes[0].get_title() == "MAPE 9.1 % over 1 exported file"

    def test_shows_fitted_and_exported_apart(self) -> None:
        """Four hollow calibration networks, four and three filled files, the line and the band."""
        figure = prediction_figure(bundle(), [table()])

        _, *groups = figure.axes[0].get_lines()
        assert [len(points(group)) for group in groups] == [4, 3, 4]
        assert [group.get_markerfacecolor() == "none" for group in groups] == [False, False, True]
        assert legend(figure) == [
            "within 5 %",
            "predicted = measured",
            "files, executorch 1.5.1",
            "files, litert 2.3.0",
            "calibration, pixel-8/executorch-1.5.1 (measured)",
        ]

    def test_leaves_modelled_tables_out(self) -> None:
        """A modelled time is not a measured one: nothing is left to draw."""
        modelled = table().model_copy(update={"source": "modelled"})

        figure = prediction_figure(manifest(variant("coreml", 0.9, measured=False)), [modelled])

        assert [text.get_text() for text in figure.texts] == ["nothing was both predicted and measured"]


class TestImports:
    def test_loads_nothing_heavy(self) -> None:
        """Importing the module loads none of its extras, and drawing does not load pyplot."""
        script = (
            "import sys, maestro_edge.reporting as r\n"
            "assert not {'matplotlib', 'jinja2', 'torch'} & set(sys.modules)\n"
            "r.ranks_figure([])\n"
            "assert 'matplotlib.pyplot' not in sys.modules\n"
        )

        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)

        assert done.returncode == 0, done.stderr

    def test_leaves_the_users_style_alone(self) -> None:
        """The caller's rcParams neither change nor show in our figures."""
        with matplotlib.rc_context({"axes.facecolor": "black"}):
            before = dict(matplotlib.rcParams)

            figure = pareto_figure(bundle())

            assert dict(matplotlib.rcParams) == before
            assert same_color(figure.axes[0].get_facecolor(), "white")

    @pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
    def test_missing_extra_is_one_line(
        self, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Without an extra the message says what to install, and no page is written."""
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.setitem(sys.modules, name, None)
        path = tmp_path / "r.html"

        with pytest.raises(MissingExtra) as caught:
            write_report(path, manifest=bundle(), plans=[], tables=[])

        assert str(caught.value) == f"{package} is not installed: pip install 'maestro-edge[report]'"
        assert not path.exists()
