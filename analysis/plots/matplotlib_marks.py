"""The marks of a Vega scene as matplotlib artists."""

from __future__ import annotations

import base64
import io
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.font_manager import FontProperties, get_font_names
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.transforms import IdentityTransform, ScaledTranslation, Transform
from PIL import Image

from harvest.errors import InputError

Item = Mapping[str, Any]  # what Vega says of one line, one symbol, one text and so on
INSTEAD = "save it with analysis.figures.save, as .svg"
STEPS = {"linear": "default", "step": "steps-mid", "step-after": "steps-post", "step-before": "steps-pre"}
HEIGHT = math.sqrt(3) / 2  # of a triangle with sides of length 1
CORNERS = {  # of symbols, x to the right and y up; 1 is half of the symbol's width
    "square": "-1,-1 1,-1 1,1 -1,1",
    "diamond": "-1,0 0,-1 1,0 0,1",
    "triangle-up": f"-1,{-HEIGHT} 1,{-HEIGHT} 0,{HEIGHT}",
    "triangle-down": f"-1,{HEIGHT} 1,{HEIGHT} 0,{-HEIGHT}",
    "triangle-right": f"{-HEIGHT},1 {-HEIGHT},-1 {HEIGHT},0",
    "triangle-left": f"{HEIGHT},1 {HEIGHT},-1 {-HEIGHT},0",
    "cross": "-1,.4 -1,-.4 -.4,-.4 -.4,-1 .4,-1 .4,-.4 1,-.4 1,.4 .4,.4 .4,1 -.4,1 -.4,.4",
    "stroke": "-1,0 1,0",
    "wedge": "-.25,-.577 .25,-.577 0,1.155",
    "arrow": "-.14,-1 .14,-1 .14,.125 .4,.125 0,1 -.4,.125 -.14,.125",
}
ASCENT, DESCENT = 0.74, 0.21  # of letters, as shares of the size of a font; matplotlib multiplies only the first
BASELINES = {"middle": "center", "top": "top", "bottom": "bottom", "line-top": "top", "line-bottom": "bottom"}


@dataclass(frozen=True)
class Canvas:
    """What marks are drawn on: the axes of a panel, or the whole figure with titles and legends.

    x, y: turn pixels into the coordinates of `transform`. finish: called with each artist that is not a text.
    """

    owner: Any
    transform: Transform
    x: Callable[[Any], np.ndarray]
    y: Callable[[Any], np.ndarray]
    finish: Callable[[Artist], None] = lambda artist: None

    def add(self, artist: Artist) -> None:
        self.owner.add_artist(artist)
        self.finish(artist)

    def places(self, items: Sequence[Item], x: str = "x", y: str = "y") -> np.ndarray:
        """The coordinates of all items (items × 2). An item without x2 or y2 ends where it begins."""
        pixels = ([item.get(name, item.get(name[0], 0)) for item in items] for name in (x, y))
        return np.stack([turn(of) for turn, of in zip((self.x, self.y), pixels, strict=True)], -1)


def colour_of(colour: str | None, *opacities: float) -> tuple[float, float, float, float]:
    """Red, green, blue and opacity of a CSS colour. No colour is transparent."""
    if colour in (None, "transparent", "none"):
        return (0.0, 0.0, 0.0, 0.0)
    if numbers := re.fullmatch(r"rgba?\((.*)\)", str(colour)):
        *channels, opacity = [float(part) for part in numbers[1].split(",")] + [1.0] * (colour[3] == "(")
        red, green, blue = (channel / 255 for channel in channels)
        return (red, green, blue, opacity * math.prod(opacities))
    return to_rgba(colour, math.prod(opacities))


def fill_of(item: Item) -> tuple[float, float, float, float]:
    return colour_of(item.get("fill"), item.get("opacity", 1), item.get("fillOpacity", 1))


def stroke_of(item: Item) -> dict[str, Any]:
    """The colour, width and dashes of an item's outline, as artists name them."""
    width, dashes = item.get("strokeWidth", 1), item.get("strokeDash") or ()
    colour = colour_of(item.get("stroke"), item.get("opacity", 1), item.get("strokeOpacity", 1))
    style = (0, tuple(length / width for length in dashes)) if dashes else "-"  # matplotlib multiplies by the width
    return {"edgecolor": colour, "linewidth": width if item.get("stroke") else 0, "linestyle": style}


def draw_lines(canvas: Canvas, items: Sequence[Item]) -> None:
    """One line through all items, with gaps at those without a value."""
    style = stroke_of(items[0])
    interpolate = items[0].get("interpolate", "linear")
    if interpolate not in STEPS:
        raise InputError(f"matplotlib cannot draw a line with interpolate={interpolate!r}: {INSTEAD}")
    places = canvas.places(items)
    places[[not item.get("defined", True) for item in items]] = np.nan
    line = Line2D(*places.T, color=style.pop("edgecolor"), transform=canvas.transform)
    line.set(drawstyle=STEPS[interpolate], zorder=2, solid_capstyle="butt", **style)
    canvas.add(line)


def draw_symbols(canvas: Canvas, items: Sequence[Item]) -> None:
    """Scattered points, a collection for each shape."""
    for shape in dict.fromkeys(item.get("shape", "circle") for item in items):
        of = [item for item in items if item.get("shape", "circle") == shape]
        styles = [stroke_of(item) for item in of]
        points = PathCollection(
            (symbol(shape),),
            [item.get("size", 64) for item in of],
            facecolors=[fill_of(item) for item in of],
            edgecolors=[style["edgecolor"] for style in styles],
            linewidths=[style["linewidth"] for style in styles],
            offsets=canvas.places(of),
            offset_transform=canvas.transform,
            transform=IdentityTransform(),  # sizes are in points
            zorder=2,
        )
        canvas.add(points)


def symbol(shape: str) -> Path:
    """The outline of a symbol of size 1."""
    if shape == "circle":
        return Path(np.asarray(Path.unit_circle().vertices) / 2, Path.unit_circle().codes)
    upside_down = shape not in CORNERS  # an SVG path, as kinds may have it
    if upside_down and re.search("[^MLZ0-9,. eE-]", shape):
        raise InputError(f"matplotlib cannot draw the symbol {shape!r}, only straight SVG paths (M, L, Z): {INSTEAD}")
    corners = np.array([float(number) for number in re.findall(r"-?[0-9.]+(?:e-?\d+)?", CORNERS.get(shape, shape))])
    corners = corners.reshape(-1, 2) * (0.5, -0.5 if upside_down else 0.5)
    return Path(corners, closed=False) if len(corners) < 3 else Path([*corners, corners[0]], closed=True)


def draw_rules(canvas: Canvas, items: Sequence[Item]) -> None:
    """Straight lines from (x, y) to (x2, y2)."""
    ends = np.stack([canvas.places(items), canvas.places(items, "x2", "y2")], 1)
    styles = [stroke_of(item) for item in items]
    plural = {f"{name}s": [style[name] for style in styles] for name in ("edgecolor", "linewidth", "linestyle")}
    canvas.add(LineCollection(list(ends), transform=canvas.transform, zorder=2, **plural))


def draw_rectangles(canvas: Canvas, items: Sequence[Item]) -> None:
    """Bars, cells, and the bars of colours in legends."""
    for item in items:
        for part, fill in slices(item):
            far = {"x": part["x"] + part.get("width", 0), "y": part["y"] + part.get("height", 0)}
            (x, y), (x2, y2) = canvas.places([part, far])
            drawn = Rectangle((x, y), x2 - x, y2 - y, facecolor=fill, transform=canvas.transform, zorder=2)
            drawn.set(**stroke_of(item))
            canvas.add(drawn)


def slices(item: Item, count: int = 64) -> list[tuple[dict[str, Any], Any]]:
    """(rectangle, colour): the item itself, or slices of its gradient. They overlap, so that no gaps are seen."""
    corner = {"x": 0, "y": 0} | dict(item)
    fill = item.get("fill")
    if not isinstance(fill, dict):
        return [(corner, fill_of(item))]
    if fill.get("gradient") != "linear":
        raise InputError(f"matplotlib cannot draw a {fill.get('gradient')} gradient: {INSTEAD}")
    stops = [(stop["offset"], colour_of(stop["color"])) for stop in fill["stops"]]
    colours = LinearSegmentedColormap.from_list("gradient", stops)((np.arange(count) + 0.5) / count)
    colours = 1 - item.get("opacity", 1) * (1 - colours)  # as on white: overlapping slices cannot be transparent
    parts = []
    for number, colour in enumerate(colours):
        start, part = number / count, dict(corner)
        if fill["x1"] != fill["x2"]:  # to the right
            part |= {"x": corner["x"] + start * item["width"], "width": (1 - start) * item["width"]}
        else:  # upwards
            part["height"] = (1 - start) * item["height"]
        parts.append((part, colour))
    return parts


def draw_areas(canvas: Canvas, items: Sequence[Item]) -> None:
    """Filled areas between (x, y) and (x2, y2), one for each run of items that have values."""
    if items[0].get("interpolate", "linear") != "linear":
        raise InputError(f"matplotlib cannot draw an area with interpolate={items[0]['interpolate']!r}: {INSTEAD}")
    for defined, group in groupby(items, key=lambda item: item.get("defined", True)):
        if defined:
            run = list(group)
            outline = np.concatenate([canvas.places(run), canvas.places(run, "x2", "y2")[::-1]])
            style = stroke_of(items[0])
            canvas.add(Polygon(outline, facecolor=fill_of(items[0]), transform=canvas.transform, zorder=2, **style))


def draw_texts(canvas: Canvas, items: Sequence[Item]) -> None:
    figure = canvas.owner.get_figure()
    for item, (x, y) in zip(items, canvas.places(items), strict=True):
        if item.get("opacity", 1) and (words := words_of(item)):
            moved = ScaledTranslation(item.get("dx", 0) / 72, -item.get("dy", 0) / 72, figure.dpi_scale_trans)
            canvas.owner.text(x, y, words, transform=canvas.transform + moved, zorder=2, **text_style(item))


def words_of(item: Item) -> str:
    """The text of an item, shortened to its limit of pixels if it has one. Lines are ended by newlines."""
    text = item.get("text", "")
    lines = [str(line) for line in text] if isinstance(text, list) else str(text).split(item.get("lineBreak") or "\n")
    font, limit = font_of(item), item.get("limit") or math.inf
    return "\n".join(shortened(line, font, limit) for line in lines)


def shortened(line: str, font: FontProperties, limit: float) -> str:
    def is_wide(words: str) -> bool:
        plain = words.replace("$", r"\$")  # two dollars would begin mathematics
        return TextPath((0, 0), plain, prop=font).get_extents().width > limit

    if math.isinf(limit) or not line or not is_wide(line):
        return line
    return line[: bisect_left(range(1, len(line)), True, key=lambda kept: is_wide(f"{line[:kept]}…"))] + "…"


def text_style(item: Item) -> dict[str, Any]:
    """How a text looks, as matplotlib's Text names it."""
    halo = stroke_of(item)
    size = item.get("fontSize", 11)
    style = {
        "fontproperties": font_of(item),
        "color": fill_of(item),
        "horizontalalignment": item.get("align", "left"),
        "verticalalignment": BASELINES.get(item.get("baseline", ""), "baseline"),
        "rotation": -item.get("angle", 0),
        "rotation_mode": "anchor",
        "linespacing": (item.get("lineHeight", size + 2) / size - DESCENT) / ASCENT,
        "parse_math": False,
    }
    if halo["linewidth"]:
        style["path_effects"] = [withStroke(linewidth=halo["linewidth"], foreground=halo["edgecolor"])]
    return style


def font_of(item: Item) -> FontProperties:
    """The first font of an item that is installed, then the one that comes with matplotlib, which has more letters."""
    weight, style = item.get("fontWeight", "normal"), item.get("fontStyle", "normal")
    return FontProperties(
        family=families(item.get("font", "")), style=style, weight=weight, size=item.get("fontSize", 11)
    )


@cache
def families(fonts: str) -> list[str]:
    installed = set(get_font_names())
    wanted = [name for name in (part.strip(" \"'") for part in fonts.split(",")) if name in installed]
    return [*wanted[:1], "DejaVu Sans"]


def draw_images(canvas: Canvas, items: Sequence[Item]) -> None:
    """Pictures, such as heatmaps, which their addresses contain."""
    for item in items:
        kind, _, data = item["url"].partition(";base64,")
        if item.get("aspect", True) or not kind.startswith("data:image/") or not isinstance(canvas.owner, Axes):
            raise InputError(
                f"matplotlib draws a picture with aspect=False, in a panel, from a data: address: {INSTEAD}"
            )
        left = item["x"] - item["width"] * {"left": 0, "center": 0.5, "right": 1}[item.get("align", "left")]
        top = item["y"] - item["height"] * {"top": 0, "middle": 0.5, "bottom": 1}[item.get("baseline", "top")]
        x, y = canvas.x([left, left + item["width"]]), canvas.y([top + item["height"], top])
        picture = AxesImage(canvas.owner, extent=(*x, *y), interpolation="none", zorder=2)
        picture.set_data(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")))
        canvas.owner.add_image(picture)
        canvas.finish(picture)


DRAWN: dict[str, Callable[[Canvas, Sequence[Item]], None]] = {
    "line": draw_lines,
    "symbol": draw_symbols,
    "rule": draw_rules,
    "rect": draw_rectangles,
    "area": draw_areas,
    "text": draw_texts,
    "image": draw_images,
}
