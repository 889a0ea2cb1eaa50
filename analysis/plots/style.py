"""The common style of all figures, and functions that save them without a browser or a network."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from harvest.errors import InputError
from harvest.files import write_atomically
from sae_jax.config import BASELINES
from sae_jax.members import kind_name

BLUE, ORANGE = "#0072B2", "#D55E00"
# Colours for the colour-blind (Okabe and Ito 2008, then Tol's muted scheme). Each kind also has a shape of its own.
KIND_STYLES = {
    "relu": (BLUE, "circle"),
    "jump_relu": (ORANGE, "square"),
    "topk": ("#009E73", "triangle-up"),
    "batch_topk": ("#CC79A7", "diamond"),
    "gated": ("#E69F00", "triangle-down"),
    "matryoshka": ("#56B4E9", "cross"),
    "tanh_relu": ("#332288", "triangle-right"),
    "p_anneal": ("#882255", "triangle-left"),
    "multi_topk": ("#117733", "M-1,-1L1,-1L-1,1L1,1Z"),
    "abs_topk": ("#666666", "wedge"),
}
OTHER_STYLE = ("#000000", "arrow")  # for a kind that is not listed above
# Vega has no further shapes that look different: give a new kind an SVG path. It needs an area, because it is filled.
WHITE = {"trained": 0.0} | dict(zip(BASELINES, (0.35, 0.55, 0.75), strict=True))  # shares of white in the colours
INK = "#111111"
GREYS = {"gridColor": "#e6e6e6", "domainColor": "#666666", "tickColor": "#666666"}
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
PIXELS_PER_INCH = 200


def paler(colour: str, white: float) -> str:
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(value + white * (255 - value)):02X}" for value in channels)


STYLES = {
    kind_name(kind, baseline): (paler(colour, white), shape)
    for kind, (colour, shape) in KIND_STYLES.items()
    for baseline, white in WHITE.items()
}


def kind_colour(kinds: Iterable[str]) -> Any:
    """The encoding of `kind` by colour, with a legend of the given kinds, each once."""
    return kind_marks(kinds)[0]


def kind_marks(kinds: Iterable[str]) -> tuple[Any, Any]:
    """The encodings of `kind` by colour and by shape, with one legend for both. Baselines are paler than their kind."""
    present = list(dict.fromkeys(kinds))
    styles = [style_of(kind) for kind in present]
    return (
        alt.Color("kind:N", title=None).scale(domain=present, range=[colour for colour, _ in styles]),
        alt.Shape("kind:N", title=None).scale(domain=present, range=[shape for _, shape in styles]),
    )


def style_of(kind: str) -> tuple[str, str]:
    """(colour, shape) of a kind as `Member.kind` names it."""
    return STYLES.get(kind, OTHER_STYLE)


def thinned(numbers: np.ndarray, most: int) -> np.ndarray:
    """All numbers, or `most` of them at even distances."""
    return numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), most)).astype(int)]


def not_from_zero(values: Iterable[float], **settings: Any) -> Any:
    """The linear scale of an axis over these values, with room around a single one.

    Vega would write a single value, which spans no range, as the only tick, with any number of digits.
    """
    ends = {*values}
    if len(ends) != 1:
        return alt.Scale(zero=False, **settings)
    (value,) = ends
    room = 0.1 * abs(value) or 1.0
    return alt.Scale(domain=[value - room, value + room], nice=6)


def with_room(values: Sequence[float], places: np.ndarray, share: float) -> list[float]:
    """Values whose labels have room on an axis: the first, the last, and those between that are apart from others.

    `places` are the values as the axis transforms them, `share` is the part of its width that a label needs.
    """
    apart = share * (places[-1] - places[0])
    labelled = {0, len(values) - 1}
    for number in range(1, len(values) - 1):
        if min(abs(places[number] - places[other]) for other in labelled) >= apart:
            labelled.add(number)
    return [values[number] for number in sorted(labelled)]


def png_of(figure: Any, pixels_per_inch: int = PIXELS_PER_INCH) -> bytes:
    png = io.BytesIO()
    writable(figure).save(png, format="png", ppi=pixels_per_inch)
    return png.getvalue()


def writable(figure: Any) -> Any:
    """The figure without characters that XML forbids: the renderer would abort the process because of them."""
    spec = figure.to_dict()
    return figure if (clean := without_controls(spec)) == spec else alt.Chart.from_dict(clean)


def without_controls(value: Any) -> Any:
    if isinstance(value, str):
        return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {without_controls(name): without_controls(part) for name, part in value.items()}
    return [without_controls(part) for part in value] if isinstance(value, list | tuple) else value


def save(figure: Any, stem: Path) -> list[Path]:
    """Save an Altair figure as stem.png and stem.svg. Returns both paths."""
    svg = io.StringIO()
    writable(figure).save(svg, format="svg")
    contents = {stem.with_suffix(".png"): png_of(figure), stem.with_suffix(".svg"): svg.getvalue().encode()}
    for path, content in contents.items():
        write_atomically(path, lambda file, content=content: file.write(content))
    return list(contents)


def to_matplotlib(figure: Any, dpi: int = PIXELS_PER_INCH) -> Any:
    """An Altair figure as a matplotlib Figure of the same size, with axes in the units of the data. Notebooks show it.

    Each panel is one of its `axes`: its limits can be set, and lines can be added at values of the data. Categories are
    0, 1 and so on. Titles and legends are `texts` and `artists` of the figure. Raises InputError for marks and scales
    that matplotlib cannot draw, and if matplotlib is not installed.
    """
    try:
        from analysis.plots.matplotlib_figure import matplotlib_figure
    except ModuleNotFoundError as e:
        raise InputError(f"matplotlib is not installed ({e}): pip install 'sae-jax[notebook]'") from e
    return matplotlib_figure(vl_convert.vegalite_to_vega(without_controls(figure.to_dict())), dpi)


def styled(chart: Any, title: str, subtitle: str | list[str]) -> Any:
    """The chart with title, background, colours and fonts, all set so that a dark theme does not override them."""
    ink = {"labelColor": INK, "titleColor": INK}
    words = alt.TitleParams(
        title, subtitle=subtitle, anchor="start", offset=14, fontSize=16, fontWeight="bold", subtitlePadding=6
    )
    return (
        chart.properties(title=words, background="white", padding=16)
        .configure(font="Helvetica, Arial, Liberation Sans, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=12, titleFontSize=13, titleFontWeight="normal", titlePadding=10, **ink, **GREYS)
        .configure_title(fontSize=13, fontWeight="normal", color=INK, subtitleFontSize=12, subtitleColor="#555555")
        .configure_legend(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", **ink)
        .configure_header(labelFontSize=12, **ink)
    )
