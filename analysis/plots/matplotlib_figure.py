"""Altair's figures drawn by matplotlib: axes in the units of the data, whose lines and words are vectors in a PDF.

Vega lays a figure out and says what it draws at which pixels. The scales of each panel turn these pixels into data
again. Titles, legends and headers are outside of the panels and keep their places in pixels. One pixel of Vega is one
point of matplotlib, 1/72 inch.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import vl_convert
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from matplotlib.transforms import Affine2D, Bbox, TransformedBbox

from analysis.plots.matplotlib_marks import DRAWN, INSTEAD, Canvas, Item, colour_of, stroke_of, text_style, words_of
from harvest.errors import InputError

POINTS_PER_INCH, SHOWN_PER_INCH = 72, 100
MARGIN = 8  # points around a panel in which marks are not cut off: symbols at its edge are whole
CATEGORIES, BENT = ("band", "point"), ("symlog", "pow", "sqrt")
NUMBERS = ("linear", "log", *BENT)
TOLD = "scale of "  # begins the names of the marks that tell a scale


@dataclass(frozen=True)
class Scale:
    """Turns pixels of a panel into values, by two of each. Categories are numbered from 0."""

    kind: str
    constant: float  # of symlog; the exponent of pow and sqrt
    pixels: tuple[float, float]
    ends: tuple[float, float]

    def values(self, pixels: Any) -> np.ndarray:
        first, last = self.bent(np.array(self.ends))
        share = (np.asarray(pixels, float) - self.pixels[0]) / (self.pixels[1] - self.pixels[0])
        return self.straight(first + share * (last - first))

    def bent(self, values: np.ndarray) -> np.ndarray:
        """The values in units of which the axis is linear."""
        match self.kind:
            case "log":
                return np.log(values)
            case "symlog":
                return np.sign(values) * np.log1p(np.abs(values) / self.constant)
            case "pow" | "sqrt":
                return np.sign(values) * np.abs(values) ** self.constant
        return values

    def straight(self, bent: np.ndarray) -> np.ndarray:
        """The inverse of `bent`."""
        match self.kind:
            case "log":
                return np.exp(bent)
            case "symlog":
                return np.sign(bent) * np.expm1(np.abs(bent)) * self.constant
            case "pow" | "sqrt":
                return np.sign(bent) * np.abs(bent) ** (1 / self.constant)
        return bent


IN_PIXELS = Scale("linear", 1, (0, 1), (0, 1))  # for an axis along which nothing is drawn by its value


@dataclass(frozen=True)
class Panel:
    """Axes with their corner in pixels of the figure, their size in pixels, and their scales by "x" and "y"."""

    axes: Axes
    left: float
    top: float
    width: float
    height: float
    scales: Mapping[str, Scale]


class NotebookFigure(Figure):
    """A Figure that notebooks show. By default they show only figures of pyplot."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=SHOWN_PER_INCH)
        return png.getvalue()


def matplotlib_figure(vega: Mapping[str, Any], dpi: float) -> Figure:
    """A Vega specification as a matplotlib Figure of the same size. Raises InputError for what it cannot express."""
    spec = copy.deepcopy(dict(vega))
    tell_scales(spec, {})
    return Drawing(vl_convert.vega_to_scenegraph(spec), spec.get("background"), dpi).figure


def tell_scales(group: dict[str, Any], outer: Mapping[str, Any]) -> None:
    """Add marks to the panels of a Vega specification that tell their scales, which a scene does not name."""
    scales = {**outer, **{scale["name"]: scale for scale in group.get("scales", ())}}
    for axis in group.get("axes", ()):
        axis["tickRound"] = False  # ticks are at their values, not at the nearest pixel
    marks = group.get("marks", [])
    drawn = [mark for part in marks for mark in (part.get("marks", []) if is_lines(part) else [part])]
    for part in marks:
        if part["type"] == "group" and not is_lines(part):
            tell_scales(part, scales)
    for way in "xy":
        used = {name for mark in drawn for name in used_scales(mark, way)}
        if len(used) > 1:
            raise InputError(f"a panel has {len(used)} {way} scales, and matplotlib's axes have one: {INSTEAD}")
        marks += [telling_mark(way, scales[name]) for name in used]


def is_lines(mark: Mapping[str, Any]) -> bool:
    """Whether this group is not a panel but the lines of one, as Vega-Lite makes them."""
    return mark.get("name", "").endswith("pathgroup")


def used_scales(mark: Mapping[str, Any], way: str) -> Iterator[str]:
    for encoded in mark.get("encode", {}).values():
        for channel in (way, f"{way}2", f"{way}c"):
            cases = encoded.get(channel, [])
            yield from (case["scale"] for case in (cases if isinstance(cases, list) else [cases]) if "scale" in case)


def telling_mark(way: str, scale: Mapping[str, Any]) -> dict[str, Any]:
    """An invisible mark whose description has the pixels and the values of two places, and the length in pixels."""
    kind, name = scale.get("type", "linear"), f"'{scale['name']}'"
    if kind not in CATEGORIES + NUMBERS:
        raise InputError(f"matplotlib cannot draw an axis with a scale of type {kind!r}: {INSTEAD}")
    domain, length = f"domain({name})", f"peek(range({name})) - range({name})[0]"
    places = [f"scale({name}, {end}) + bandwidth({name}) / 2" for end in (f"{domain}[0]", f"peek({domain})")]
    ends = ["0", f"length({domain}) - 1"] if kind in CATEGORIES else [f"{domain}[0]", f"peek({domain})"]
    constant = scale.get("constant", 1) if kind == "symlog" else scale.get("exponent", 0.5 if kind == "sqrt" else 1)
    told = {"signal": f"join([{', '.join([*places, *ends, length])}], ' ')"}
    encoded = {"update": {"description": told, "size": {"value": 0}}}  # without a size, it takes no space
    return {"type": "symbol", "name": f"{TOLD}{way} {kind} {constant}", "encode": encoded}


def told_scales(group: Item) -> dict[str, Scale]:
    """The scales that a panel of the scene tells, by "x" and "y"."""
    scales = {}
    for mark in group["items"]:
        if mark.get("name", "").startswith(TOLD):
            way, kind, constant = mark["name"].removeprefix(TOLD).split()
            told = [float(number) for number in mark["items"][0]["description"].split()]
            start, end, first, last, length = told if np.isfinite(told).all() else (0, 0, 1, 1, 1)  # without values
            if start == end:  # one value at most
                end, last = start + (length or 1), first + 1
            scales[way] = Scale(kind, float(constant), (start, end), (first, last))
    return scales


class Drawing:
    """A matplotlib figure of a scene, which Vega describes."""

    def __init__(self, scene: Item, background: str | None, dpi: float) -> None:
        self.wide, self.tall = scene["width"], scene["height"]
        inches = self.wide / POINTS_PER_INCH, self.tall / POINTS_PER_INCH
        self.figure = NotebookFigure(figsize=inches, dpi=dpi, facecolor=colour_of(background))
        self.pixels = Affine2D().scale(1 / self.wide, -1 / self.tall).translate(0, 1) + self.figure.transFigure
        self.panels: list[Panel] = []
        self.guides: list[tuple[Item, float, float]] = []  # axes as Vega has them, and their corners
        for group in scene["scenegraph"]["items"]:
            self.draw(group, *scene["origin"])
        for guide in sorted(self.guides, key=lambda guide: "axis-label" in parts_of(guide[0])):  # after those of grids
            self.draw_axis(*guide)

    def draw(self, group: Item, left: float, top: float, within: Canvas | None = None) -> None:
        """Draw a group whose corner is at (left, top), and all groups in it. `within` is the panel it is a part of."""
        canvas = within or Canvas(self.figure, self.pixels, lambda x: np.add(x, left), lambda y: np.add(y, top))
        if scales := told_scales(group):
            canvas = self.panel(group, left, top, scales)
        elif group.get("width") and (group.get("fill") or group.get("stroke")):
            DRAWN["rect"](canvas, [{**group, "x": 0, "y": 0}])
        for mark in group["items"]:
            kind, items = mark["marktype"], mark["items"]
            if kind == "group":
                for item in items:
                    corner = left + item.get("x", 0), top + item.get("y", 0)
                    if mark["role"] == "axis":
                        self.guides.append((item, *corner))
                    else:
                        self.draw(item, *corner, canvas if is_lines(mark) else None)
            elif kind not in DRAWN:
                raise InputError(f"matplotlib cannot draw the mark {kind!r}: {INSTEAD}")
            elif items and not mark.get("name", "").startswith(TOLD):
                DRAWN[kind](canvas, items)

    def panel(self, group: Item, left: float, top: float, told: Mapping[str, Scale]) -> Canvas:
        """Axes for a panel with its limits, and the canvas on which its marks are drawn."""
        width, height = max(group["width"], 1), max(group["height"], 1)  # without categories it is 0
        place = left / self.wide, 1 - (top + height) / self.tall, width / self.wide, height / self.tall
        axes = self.figure.add_axes(place, facecolor=colour_of(group.get("fill")), axisbelow=True)
        scales = {way: told.get(way, IN_PIXELS) for way in "xy"}
        for way, edges in (("x", [0, width]), ("y", [height, 0])):
            scale, axis = scales[way], getattr(axes, f"{way}axis")
            if scale.kind == "log":
                axes.set(**{f"{way}scale": "log"})
            elif scale.kind in BENT:
                getattr(axes, f"set_{way}scale")("function", functions=(scale.bent, scale.straight))
            axes.set(**{f"{way}lim": scale.values(edges)})
            axis.set_ticks([])
            axis.set_minor_locator(NullLocator())
        axes.spines[:].set(visible=bool(group.get("stroke")), **stroke_of(group))
        self.panels.append(Panel(axes, left, top, width, height, scales))
        seen = Bbox([[-MARGIN / width, -MARGIN / height], [1 + MARGIN / width, 1 + MARGIN / height]])

        def clip(artist: Artist) -> None:
            artist.set_clip_path(None)
            artist.set_clip_box(TransformedBbox(seen, axes.transAxes))

        return Canvas(axes, axes.transData, scales["x"].values, scales["y"].values, clip)

    def draw_axis(self, guide: Item, left: float, top: float) -> None:
        """Draw ticks, labels, title, line and grid of an axis of Vega at the panel that is nearest to it."""
        orient = guide["orient"]
        panel = self.panel_beside(orient, left, top)
        way = "x" if orient in ("bottom", "top") else "y"
        axis, parts = getattr(panel.axes, f"{way}axis"), parts_of(guide)
        labels, ticks, grid = (parts.get(f"axis-{part}", []) for part in ("label", "tick", "grid"))
        values = panel.scales[way].values([mark[way] for mark in labels or grid or ticks])
        axis.set_ticks_position(orient)
        axis.set_ticks(values, [words_of(label) if label["opacity"] else "" for label in labels] or [""] * len(values))
        across = "y" if way == "x" else "x"
        length = abs(ticks[0].get(f"{across}2", 0) - ticks[0].get(across, 0)) if ticks else 0
        axis.set_tick_params(length=length)
        if ticks:
            axis.set_tick_params(color=stroke_of(ticks[0])["edgecolor"], width=stroke_of(ticks[0])["linewidth"])
        if labels:
            style = text_style(labels[0])
            size = style["fontproperties"].get_size_in_points()
            axis.set_tick_params(pad=abs(labels[0][across]) - length, labelcolor=style["color"], labelsize=size)
            for drawn, label in zip(axis.get_ticklabels(), labels, strict=True):
                drawn.set(**text_style(label))
        if grid:
            style = stroke_of(grid[0])
            axis.grid(color=style["edgecolor"], linewidth=style["linewidth"], linestyle=style["linestyle"])
        for line in parts.get("axis-domain", []):
            panel.axes.spines[orient].set(visible=True, **stroke_of(line))
        for title in parts.get("axis-title", []):  # placed from the panel's edge, as in Vega if they touch
            x, y = title.get("x", 0) / panel.width, -title.get("y", 0) / panel.height
            axis.set_label_text(words_of(title), **text_style(title))
            axis.set_label_coords(x + (orient == "right"), y + (orient != "bottom"))

    def panel_beside(self, orient: str, left: float, top: float) -> Panel:
        """The panel whose edge is nearest to an axis. Panels of facets share axes, which are outside of them."""

        def distance(panel: Panel) -> float:
            x = panel.left + (panel.width if orient == "right" else 0)
            y = panel.top + (panel.height if orient == "bottom" else 0)
            along, away = (x - left, y - top) if orient in ("bottom", "top") else (y - top, x - left)
            return 1000 * abs(along) + abs(away)

        return min(self.panels, key=distance)


def parts_of(guide: Item) -> dict[str, list[Item]]:
    """The marks of an axis by their role: axis-tick, axis-label, axis-grid, axis-domain and axis-title."""
    return {mark["role"]: mark["items"] for mark in guide["items"]}
