"""Every chart of the project becomes a matplotlib figure with axes in the units of its data."""

import contextlib
import io
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import altair as alt
import matplotlib
import numpy as np
import pytest
import vl_convert
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba
from matplotlib.image import AxesImage
from PIL import Image

from analysis import figures
from analysis.comparison.clusters import Clusters
from analysis.comparison.emergence import Trajectory
from analysis.comparison.frontier import Frontier, Point
from analysis.comparison.shared_features import Comparison
from analysis.comparison.splitting import Splitting, Step
from analysis.interventions.steering import UNSTEERED, Steered, Texts
from analysis.pages.feature import Stage
from analysis.plots.comparison import estimates_chart, shared_features_chart, splitting_chart
from analysis.plots.densities import densities_chart, density_heatmap
from analysis.plots.feature_map import clusters_chart, density_map, feature_map
from analysis.plots.frontier import frontier_chart
from analysis.plots.steering import steering_chart
from analysis.plots.style import style_of
from analysis.plots.training import emergence_curves, emergence_heatmap, training_curves_chart
from analysis.runs.families import Spread
from analysis.stats import Estimate
from analysis.ui.dashboard.feature_figures import emergence, histogram, positions
from harvest.errors import InputError

METRICS = ("explained_variance", "ce_recovered")
GENERATOR = np.random.default_rng(0)
KINDS = {"relu-s0": "relu", "topk-s0": "topk", "multi-s0": "multi_topk", "abs-s0": "abs_topk", "tanh-s0": "tanh_relu"}
CURVES = {
    name: [{"step": 10 * i, "mse": (2.0 + n) / (1 + i), "explained_variance": 1 - 0.7 / (1 + i + n)} for i in range(20)]
    for n, name in enumerate(KINDS)
}


def frontier(panels: tuple[str, ...]) -> Frontier:
    points = [
        Point(
            panel, kind, k, (0, 1), {"l0": Spread(k + 0.3, 0.1)} | {m: Spread(1 - 1 / (k + n), 0.02) for m in METRICS}
        )
        for panel in panels
        for n, kind in enumerate(["relu", "abs_topk", "multi_topk"])
        for k in (8, 16, 32, 64)
    ]
    return Frontier(points, [], {"model": "gpt2", "hidden_dim": 768, "text": "pile"}, ["run"])


def trajectory() -> Trajectory:
    steps, features = [0, 10, 20, 40, 80], 60
    cosine_SxF = np.sort(GENERATOR.random((len(steps), features)), axis=0)
    share_S = (cosine_SxF > 0.7).mean(1)
    alive_F, emerged_F = np.ones(features, bool), GENERATOR.choice(steps, features)
    counts_S = np.zeros(len(steps), int)
    return Trajectory(
        steps, alive_F, cosine_SxF, cosine_SxF, cosine_SxF, emerged_F, share_S, counts_S, counts_S, counts_S, {}
    )


def comparison(members: int) -> Comparison:
    share_MxM = GENERATOR.random((members, members))
    labels = tuple(f"member {n} with a long name" for n in range(members))
    return Comparison(
        labels, ("dead",), labels, (9,) * members, 0.7, share_MxM, share_MxM / 9, share_MxM, share_MxM, 100,
        share_MxM, share_MxM, (), {}, {}, {}, {},
    )  # fmt: skip


def clusters() -> Clusters:
    xy_Fx2 = GENERATOR.normal(size=(300, 2))
    label_F = GENERATOR.integers(-1, 12, 300)
    names = tuple(f" name{n}, $5 {n}" for n in range(12))
    sizes = tuple(int((label_F == n).sum()) for n in range(12))
    return Clusters(xy_Fx2, xy_Fx2, label_F, ("token",) * 300, names, sizes, (0.2, 0.1), "PCA", 0.1, 0.5, 0.6, 300, 4)


def steered() -> Steered:
    strengths = (-4.0, 0.0, 0.5, 1.0, 8.0)
    curves = {
        name: tuple(Texts(s, (), 0.01 + abs(s) / (50 + n), 20.0 + 100 * abs(s) + n, 0.9) for s in strengths)
        for n, name in enumerate(["feature 3 of topk", "random direction", "difference of means"])
    }
    return Steered("add", ("a prompt",), (" sea", "🌊"), {UNSTEERED: Texts(0.0, (), 0.02, 18.0, 0.9)}, curves)


def estimates() -> dict[str, dict[str, Estimate]]:
    columns = ["explained variance", "a longer name of a column that is wrapped", "share", "negative", "n"]
    return {
        kind: {name: Estimate(n - i / 3, n - i / 3 - 0.2, n - i / 3 + 0.2, 5) for n, name in enumerate(columns)}
        for i, kind in enumerate(["relu", "topk", "jump_relu"])
    }


STEPS = (Step(64, 128, {0: 3, 1: 50, 2: 9, 3: 2}, 31, 0.1), Step(128, 256, {0: 8, 1: 90, 2: 20, 5: 4}, 77, 0.1))
SPLITTING = Splitting(("a", "b", "c"), (64, 128, 256), (64, 128, 256), 0.7, STEPS, (), (), ())
STAGES = [Stage(step, min(1, 0.2 + step / 90), min(1, step / 80)) for step in (0, 10, 20, 40, 80)]
DENSITY_F = 10 ** GENERATOR.uniform(-5, -0.5, 400)
XY_FX2 = GENERATOR.normal(size=(400, 2))
SHARE_P = GENERATOR.random(31)
BARS = GENERATOR.integers(0, 9, 12), np.linspace(-1, 2, 13)
CHARTS = {  # name: (chart, its number of panels)
    "training": (training_curves_chart(CURVES, KINDS), 2),
    "frontier": (frontier_chart(frontier(("",))), 2),
    "frontier-panels": (frontier_chart(frontier(("layer 1", "layer 2", "layer 3", "layer 4"))), 8),
    "densities": (densities_chart({name: DENSITY_F for name in KINDS}, KINDS), 1),
    "density-heatmap": (density_heatmap("topk", {0: DENSITY_F, 10: DENSITY_F**2}), 1),
    "emergence": (emergence_curves({"relu-s0": trajectory(), "topk-s0": trajectory()}, KINDS), 1),
    "emergence-heatmap": (emergence_heatmap("topk", trajectory()), 1),
    "feature-map": (feature_map(np.arange(400), XY_FX2, DENSITY_F, {"promotes": ["x"] * 400}, "chosen"), 1),
    "density-map": (density_map("topk", DENSITY_F, XY_FX2, "UMAP"), 1),
    "clusters": (clusters_chart(clusters()), 1),
    "shared-features": (shared_features_chart(comparison(5)), 2),
    "splitting": (splitting_chart(SPLITTING), 2),
    "estimates": (estimates_chart("Answers", estimates()), 5),
    "estimates-shared": (estimates_chart("Answers", estimates(), shared=True), 5),
    "steering": (steering_chart(steered()), 2),
    "feature-histogram": (histogram(BARS, "activation", "firings", "How strongly it fires", "all"), 1),
    "feature-positions": (positions(SHARE_P, 1), 1),
    "feature-emergence": (emergence(STAGES), 1),
}


@pytest.fixture(scope="module", params=CHARTS)
def drawn(request):
    chart, panels = CHARTS[request.param]
    return request.param, chart, panels, figures.to_matplotlib(chart)


vl_convert.register_font_directory(str(Path(matplotlib.get_data_path(), "fonts", "ttf")))


def greys(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The upper left of a picture as shades of grey from 0 to 1, each the mean of 8 × 8 pixels."""
    width, height = (side // 8 for side in size)
    corner = picture.convert("L").crop((0, 0, 8 * width, 8 * height))
    return np.asarray(corner.resize((width, height), Image.Resampling.BOX)) / 255


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_every_chart_looks_as_that_of_altair_and_has_axes_for_each_panel(drawn):
    name, chart, panels, figure = drawn
    assert len(figure.axes) == panels
    chart = chart.copy()
    chart.config.font = "DejaVu Sans"  # comes with matplotlib; the other fonts are not on every machine
    picture = io.BytesIO()
    figures.to_matplotlib(chart).savefig(picture, dpi=100)
    here, there = Image.open(picture), Image.open(io.BytesIO(figures.png_of(chart, 100)))
    size = np.minimum(here.size, there.size)
    assert abs(np.subtract(here.size, there.size)).max() <= 2
    difference = np.abs(greys(here, size) - greys(there, size))
    assert difference.mean() < 0.02 and np.quantile(difference, 0.99) < 0.3


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_the_lines_and_words_of_every_chart_are_vectors_in_a_pdf(drawn):
    name, _, _, figure = drawn
    written = io.BytesIO()
    figure.savefig(written, format="pdf")
    pdf = written.getvalue()
    streams = b""
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        with contextlib.suppress(zlib.error):
            streams += zlib.decompress(stream)
    assert len(re.findall(rb"\bT[jJ]\b", streams)) >= 5 and streams.count(b" l\n") > 5
    assert (b"/Subtype /Image" in pdf) == ("heatmap" in name)


def axes_of(name: str) -> list[Axes]:
    return figures.to_matplotlib(CHARTS[name][0]).axes


def points_of(axes: Axes) -> np.ndarray:
    """The places of all symbols."""
    return np.concatenate([part.get_offsets() for part in axes.collections if isinstance(part, PathCollection)])


def close(drawn, data) -> None:
    """Assert that two lists of places are the same but for their order."""
    ordered = (
        sorted(np.asarray(places).tolist(), key=lambda place: np.round(place, 6).tolist()) for places in (drawn, data)
    )
    np.testing.assert_allclose(*ordered, rtol=1e-6, atol=1e-9)


def test_lines_are_at_the_values_of_the_data():
    for axes, metric in zip(axes_of("training"), ("mse", "explained_variance"), strict=True):
        for line, rows in zip(axes.lines, CURVES.values(), strict=True):
            close(line.get_xydata(), [(row["step"], row[metric]) for row in rows])
    assert [axes.get_yscale() for axes in axes_of("training")] == ["log", "linear"]
    assert axes_of("densities")[0].lines[0].get_drawstyle() == "steps-mid"


def test_lines_have_the_colours_and_dashes_of_the_chart():
    colours = [line.get_color() for line in axes_of("training")[0].lines]
    assert colours == [to_rgba(style_of(kind)[0], 0.8) for kind in KINDS.values()]
    (rule,) = (lines for lines in axes_of("feature-emergence")[0].collections if isinstance(lines, LineCollection))
    assert rule.get_linestyles() == [(0, [4.0, 3.0])]
    np.testing.assert_allclose(np.array(rule.get_segments())[0, :, 1], [0.7, 0.7])


def test_points_and_error_bars_are_at_the_values_of_the_data():
    points = frontier(("",)).drawn
    for axes, metric in zip(axes_of("frontier"), METRICS, strict=True):
        close(points_of(axes), [(p.metrics["l0"].mean, p.metrics[metric].mean) for p in points])
        bars = np.concatenate([c.get_segments() for c in axes.collections if isinstance(c, LineCollection)])
        upright = bars[np.isclose(bars[:, 0, 0], bars[:, 1, 0])]
        ends = [(p.metrics[metric].mean - 0.02, p.metrics[metric].mean + 0.02) for p in points]
        close(np.sort(upright[:, :, 1]), ends)


def test_points_on_an_axis_that_is_neither_linear_nor_logarithmic():
    probability, perplexity = axes_of("steering")
    texts = [text for curve in steered().directions.values() for text in curve]
    close(points_of(probability), 2 * [(text.strength, text.probability) for text in texts])  # a line has points, too
    close(points_of(perplexity), 2 * [(text.strength, text.perplexity) for text in texts])
    across = probability.transData.transform([(value, 0.1) for value in (-1, 0, 1, 3)])[:, 0]
    np.testing.assert_allclose(np.diff(across)[[0, 2]], np.diff(across)[1])  # log1p(3) is twice log1p(1)


@pytest.mark.parametrize("name", ["emergence", "feature-emergence"])
def test_an_axis_of_snapshots_begins_at_step_0_and_ends_with_the_training(name):
    (axes,) = axes_of(name)
    np.testing.assert_allclose(axes.get_xlim(), (0, 80), atol=1e-9)
    steps, labels = axes.get_xticks().tolist(), [label.get_text() for label in axes.get_xticklabels()]
    np.testing.assert_allclose(steps, [0, 10, 20, 40, 80], atol=1e-9)
    assert labels == ["0", "10", "20", "40", "80"]
    assert np.unique(points_of(axes)[:, 0].round(6)).tolist() == [0, 10, 20, 40, 80]


def test_a_long_training_has_labels_only_for_the_snapshots_that_leave_room():
    stages = [Stage(step, 0.5, 0.5) for step in (0, 4, 11, 31, 88, 245, 684, 1910, 5333, 14892, 20000)]
    (axes,) = figures.to_matplotlib(emergence(stages).properties(width=300)).axes
    labels = axes.get_xticklabels()
    assert labels[0].get_text() == "0" and labels[-1].get_text() == "20,000" and 3 < len(labels) < 9
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))


def test_a_subtitle_mentions_intervals_only_if_some_are_drawn():
    alone = {
        row: {name: Estimate(of.mean, None, None, 1) for name, of in known.items()}
        for row, known in estimates().items()
    }
    subtitles = [estimates_chart("Answers", table).to_dict()["title"]["subtitle"] for table in (estimates(), alone)]
    assert subtitles == [["mean over seeds and 95% interval"], ["mean over seeds"]]


def estimates_of(*columns: str, means=(0.1, 0.2)) -> dict[str, dict[str, Estimate]]:
    return {f"kind {mean}": {name: Estimate(mean, None, None, 1) for name in columns} for mean in means}


def test_panels_of_a_row_line_up_for_titles_of_any_length():
    titles = ("short", "a title that needs two lines of 34 characters", "a title " * 12, "4", "5" * 50, "6")
    drawn = figures.to_matplotlib(estimates_chart("Answers", estimates_of(*titles, means=(1e-5, 2e5))))
    boxes = [axes.get_position() for axes in drawn.axes]
    for side, ends in {side: [getattr(box, side) for box in boxes] for side in ("y0", "y1", "x0", "x1")}.items():
        assert len({round(end, 6) for end in ends}) == (2 if side[0] == "y" else 3), side


def test_rounding_is_no_data():
    table = {
        row: {name: replace(of, mean=of.mean * 1e-15) if name == "noise" else of for name, of in known.items()}
        for row, known in estimates_of("noise", "share").items()
    }
    (axes,) = figures.to_matplotlib(chart := estimates_chart("Answers", table)).axes
    assert axes.get_xlim()[0] >= 0.1 and chart.to_dict()["title"]["subtitle"][1].endswith("not drawn: noise")


@pytest.mark.parametrize("means", [(0.9532, 0.9648), (1.00921, 1.0134), (0.06, 0.127), (-0.0015, 0.0002), (16, 33)])
def test_the_labels_of_estimates_do_not_touch_and_stand_at_both_ends(means):
    (axes,) = figures.to_matplotlib(estimates_chart("Answers", estimates_of("share", means=means))).axes
    labels = [label for label in axes.get_xticklabels() if label.get_text()]
    assert 3 <= len(labels) <= 6 and len({len(label.get_text().split(".")[-1]) for label in labels}) == 1
    assert axes.get_xlim() == pytest.approx((axes.get_xticks()[0], axes.get_xticks()[-1]))
    boxes = [label.get_window_extent() for label in labels]
    assert all(right.x0 - left.x1 > 2 for left, right in zip(boxes, boxes[1:], strict=False))


def test_axes_of_a_frontier_have_labels_of_one_length():
    for axes in figures.to_matplotlib(CHARTS["frontier"][0]).axes:
        texts = [label.get_text() for label in axes.get_yticklabels()]
        assert len({len(text) for text in texts}) == 1
        assert axes.get_ylim() == pytest.approx((float(texts[0]), float(texts[-1])))
    assert "held-out rows; text: pile" in CHARTS["frontier"][0].to_dict()["title"]["subtitle"][0]


def test_a_steering_figure_names_its_scale_and_the_strengths_that_were_tried():
    chart = CHARTS["steering"][0]
    assert chart.to_dict()["title"]["text"].startswith("Steering by feature 3")
    for axes in figures.to_matplotlib(chart).axes:
        labels = [label.get_text().replace("−", "-") for label in axes.get_xticklabels()]
        assert [float(label) for label in labels] == [-4, 0, 0.5, 8] and "log scale" in axes.get_xlabel()


def test_the_legend_of_a_map_of_clusters_has_the_features_in_no_cluster_only_if_there_are_some():
    drawn = clusters()
    inside = replace(drawn, label_F=np.maximum(drawn.label_F, 0), noise=0.0)
    for of, named in ((drawn, True), (inside, False)):
        assert ("in no cluster" in json.dumps(clusters_chart(of).to_dict()["layer"][0]["encoding"])) == named


def test_points_without_axes_are_at_the_values_of_the_data():
    (axes,) = axes_of("feature-map")
    close(points_of(axes), XY_FX2)
    assert not len(axes.get_xticks()) and not axes.spines["left"].get_visible()


def test_bars_are_at_the_values_of_the_data():
    (axes,) = axes_of("feature-histogram")
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), abs(bar.get_height())) for bar in axes.patches]
    edges, share_B = BARS[1], BARS[0] / BARS[0].sum()
    np.testing.assert_allclose([bar[2] for bar in bars], share_B, rtol=1e-6, atol=1e-9)
    width = axes.get_window_extent().width / axes.figure.dpi * 72 / np.ptp(axes.get_xlim())  # points per unit
    np.testing.assert_allclose([bar[0] for bar in bars], edges[:-1], atol=1.5 / width)  # bars have gaps


def test_categories_are_numbered_in_their_order():
    (axes,) = axes_of("feature-positions")
    assert [axes.get_xlim(), *axes.get_ylim()] == [pytest.approx((-0.5, 30.5), abs=0.1), 0, pytest.approx(1)]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    np.testing.assert_allclose(middles, range(31), atol=1e-6)
    np.testing.assert_allclose([abs(bar.get_height()) for bar in axes.patches], SHARE_P, rtol=1e-6)
    assert [label.get_text() for label in axes.get_xticklabels()][:5] == ["1", "", "", "", "5"]
    for axes in axes_of("estimates"):
        assert [label.get_text() for label in axes.get_yticklabels()] in (["relu", "topk", "jump_relu"], [])
        assert sorted(points_of(axes)[:, 1]) == pytest.approx([0, 1, 2])


def test_the_words_in_a_panel_are_at_their_values():
    share_MxM = {text.get_position(): text.get_text() for text in axes_of("shared-features")[0].texts}
    assert len(share_MxM) == 20 and {round(x) for x, _ in share_MxM} == set(range(5))
    shared = json.loads(CHARTS["shared-features"][0].to_json())["hconcat"][0]["data"]["values"]
    labels = comparison(5).labels
    for row in shared:
        (words,) = (
            of for at, of in share_MxM.items() if np.allclose(at, [labels.index(row["in"]), labels.index(row["of"])])
        )
        assert words == row["text"]


def test_a_heatmap_is_an_image_over_its_panel():
    (axes,) = axes_of("emergence-heatmap")
    (image,) = (part for part in axes.get_children() if isinstance(part, AxesImage))
    np.testing.assert_allclose(image.get_extent(), [*axes.get_xlim(), *axes.get_ylim()])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "10", "20", "40", "80"]


def test_titles_legends_and_labels_are_words():
    figure = figures.to_matplotlib(CHARTS["training"][0])
    assert {"Loss and explained variance", *KINDS.values()} <= {text.get_text() for text in figure.texts}
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_ylabel()) == ("training step", "explained variance")
    assert [label.get_text() for label in right.get_yticklabels()] == [f"{n / 10:.1f}" for n in range(3, 11)]
    np.testing.assert_allclose(right.get_yticks(), np.arange(3, 11) / 10)


def test_a_user_can_add_lines_and_set_limits():
    (axes,) = axes_of("emergence")
    line = axes.axhline(0.9)
    axes.set_xlim(10, 70)
    before = axes.transData.transform((30, 0.9))  # in the middle, because log(1 + step / 10) is linear
    axes.figure.savefig(io.BytesIO(), format="pdf")
    assert line.get_ydata() == [0.9, 0.9] and axes.get_xlim() == (10, 70)
    box = axes.get_window_extent()
    np.testing.assert_allclose(before, [(box.x0 + box.x1) / 2, box.y0 + 0.9 * box.height])


def test_a_panel_with_one_value_and_one_of_no_values():
    one = alt.Chart(alt.Data(values=[{"x": 3.5, "y": "a"}])).mark_point()
    drawn = figures.to_matplotlib(one.encode(x=alt.X("x:Q").scale(zero=False), y="y:N"))
    close(points_of(drawn.axes[0]), [(3.5, 0)])
    assert points_of(figures.to_matplotlib(one.encode(x="x:Q")).axes[0])[0, 0] == pytest.approx(3.5)
    none = alt.Chart(alt.Data(values=[])).mark_point()
    for x, y in [("x:Q", "y:Q"), ("x:N", alt.Y("y:Q").scale(type="log"))]:
        assert not figures.to_matplotlib(none.encode(x=x, y=y)).axes[0].collections


def test_areas_have_gaps_and_lines_as_well():
    rows = [{"x": x, "y": None if x == 3 else x + 1.0} for x in range(6)]
    base = alt.Chart(alt.Data(values=rows)).encode(x="x:Q", y="y:Q")
    (axes,) = figures.to_matplotlib(base.mark_area() + base.mark_line()).axes
    left, right = (sorted(map(tuple, area.get_xy()[:-1].round(6))) for area in axes.patches)
    assert left == [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (2, 3)] and right == [(4, 0), (4, 5), (5, 0), (5, 6)]
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, False, False, True, False, False]


def test_long_words_are_shortened_and_dollars_are_no_mathematics():
    chart = alt.Chart(alt.Data(values=[{"x": "$a_b$" * 40, "y": 1}])).mark_bar().encode(y="x:N", x="y:Q")
    figure = figures.to_matplotlib(chart)
    (label,) = figure.axes[0].get_yticklabels()
    assert label.get_text().startswith("$a_b$$a_b$") and label.get_text().endswith("…")
    assert 150 < label.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / figure.dpi * 72 <= 181


BASE = alt.Chart(alt.Data(values=[{"x": 1, "y": 2, "t": "2020-01-01"}, {"x": 2, "y": 3, "t": "2021-01-01"}]))


@pytest.mark.parametrize(
    "chart, words",
    [
        (BASE.mark_arc().encode(theta="x:Q"), "the mark 'arc'"),
        (BASE.mark_line().encode(x="t:T", y="y:Q"), "a scale of type 'time'"),
        (BASE.mark_line(interpolate="monotone").encode(x="x:Q", y="y:Q"), "interpolate='monotone'"),
        (BASE.mark_point(shape="M0,0C1,1,2,2,3,3").encode(x="x:Q", y="y:Q"), "the symbol 'M0,0C1,1,2,2,3,3'"),
        (
            alt.layer(
                BASE.mark_line().encode(x="x:Q", y="y:Q"), BASE.mark_line().encode(x="x:Q", y="x:Q")
            ).resolve_scale(y="independent"),
            "2 y scales",
        ),
    ],
)
def test_what_cannot_be_drawn_is_named(chart, words):
    with pytest.raises(InputError, match=f"{words}.*save.*svg"):
        figures.to_matplotlib(chart)


def test_a_notebook_shows_the_figure():
    figure = figures.to_matplotlib(CHARTS["emergence"][0])
    shown, saved = io.BytesIO(figure._repr_png_()), io.BytesIO()
    figure.savefig(saved, dpi=100)
    np.testing.assert_array_equal(np.asarray(Image.open(shown)), np.asarray(Image.open(saved)))
