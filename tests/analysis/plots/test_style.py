"""Figures with arbitrary text. Characters that XML forbids would abort the process, so they must be replaced."""

import re

import altair as alt
import numpy as np
import pytest
import vl_convert
from PIL import Image

from analysis.plots.style import KIND_STYLES, NOT_XML, OTHER_STYLE, STYLES, save, styled
from analysis.plots.theme import INKS, figure_html
from analysis.plots.training import training_curves_chart
from sae_jax.models.registry import KINDS

CHARACTERS = ["\x00", "\x07", "\x0b", "\x1b", "\ufffe", "\ud800", "\x7f", "\n", "🌊"]


@pytest.mark.parametrize("character", CHARACTERS, ids=map(repr, CHARACTERS))
def test_any_character_is_drawn_or_replaced(character, tmp_path):
    text = f"a{character}b"
    chart = alt.Chart(alt.Data(values=[{"x": 1, "y": 2, "kind": text}])).mark_point()
    drawn = styled(chart.encode(x="x:Q", y="y:Q", color="kind:N"), text, [text])
    svg = save(drawn, tmp_path / "figure")[1].read_text()
    assert "a\N{REPLACEMENT CHARACTER}b" in svg if NOT_XML.match(character) else "\N{REPLACEMENT CHARACTER}" not in svg


def test_an_axis_over_a_single_value_has_ticks_around_it():
    curves = {"a": [{"step": 9, "mse": 35.2230119628, "explained_variance": 0.4512}]}
    svg = vl_convert.vegalite_to_svg(training_curves_chart(curves, {"a": "topk"}).to_dict())
    ticks = [float(word) for word in re.findall(r">(\d+(?:\.\d+)?)</text>", svg)]
    for value in (35.2230119628, 0.4512):
        near = [tick for tick in ticks if 0.85 * value < tick < 1.15 * value]
        assert min(near) < value < max(near) and value not in near
    assert 0 not in ticks


def test_every_kind_has_a_colour_and_a_shape_of_its_own():
    styles = [*KIND_STYLES.values(), OTHER_STYLE]
    assert KIND_STYLES.keys() == KINDS.keys()
    for values in zip(*styles, strict=True):
        assert len(set(values)) == len(styles)


def test_the_symbol_of_every_kind_is_seen(tmp_path):
    for kind, (_, shape) in (STYLES | {"other": OTHER_STYLE}).items():
        mark = alt.Chart(alt.Data(values=[{}])).mark_point(
            filled=True, shape=shape, size=100, opacity=1, color="#000000"
        )
        pixels = np.asarray(Image.open(save(mark, tmp_path / "symbol")[0]).convert("L"))
        assert (pixels < 100).sum() > 20, kind


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_colours_of_kinds_are_visible_on_a_dark_page():
    """The contrast that WCAG 2 asks for parts of figures, 3 to 1."""
    page = luminance(INKS["#FFFFFF"])
    for kind, (colour, _) in (STYLES | {"other": OTHER_STYLE}).items():
        assert (luminance(INKS.get(colour, colour)) + 0.05) / (page + 0.05) >= 3, kind


@pytest.mark.parametrize("points, is_svg", [(10, True), (4000, False)])
def test_a_large_figure_is_an_image_for_light_and_for_dark_pages(points, is_svg):
    rows = [{"x": n, "y": n, "text": "<b>"} for n in range(points)]
    chart = alt.Chart(alt.Data(values=rows)).mark_point().encode(x="x:Q", y="y:Q", tooltip="text:N")
    html = figure_html(styled(chart, "<i>title</i>", ["a", "b"]), "name", "1 & 2")
    assert html.count("<svg") == (2 if is_svg else 0) and html.count("<picture>") == (0 if is_svg else 2)
    assert html.count('media="screen and (prefers-color-scheme: dark)"') == html.count("<picture>")
    assert "&lt;i&gt;title" in html and "a; b" in html and "1 &amp; 2" in html and "<b><" not in html
    assert not is_svg or "<title>x: 0; y: 0; text: &lt;b&gt;</title>" in html
