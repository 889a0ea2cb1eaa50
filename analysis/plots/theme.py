"""Figures on pages: without a background, in the inks of a light or a dark page, and in a second shape for phones.

The files that `style.save` writes keep dark ink on white, because a paper or a slide does not tell them what is around
them. On a page, the title and the subtitle are text of the page, so that they are wrapped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from analysis.plots.style import without_controls

INKS = {  # the inks of all figures, and their replacements on a dark page; the names black and white are not replaced
    "#111111": "#E8EAED",
    "#555555": "#A8AEB6",
    "#666666": "#A8AEB6",
    "#9A9A9A": "#7B828C",
    "#DCDCDC": "#4A505A",
    "#E6E6E6": "#343941",
    "#FFFFFF": "#15171B",
    "#000000": "#FFFFFF",
    "#0072B2": "#56B4E9",
    "#56B4E9": "#A6DBFF",
    "#332288": "#A99BFF",
    "#882255": "#E58AB8",
    "#117733": "#5FCB86",
    "#009E73": "#2CC79A",
    "#D55E00": "#FF8A3D",
}
PHONE = 240  # largest width of a plot on a phone, without its axes
MOST_CHARACTERS = 300_000  # of a figure as SVG; a larger one becomes an image
STYLE = """
.figure { container-type: inline-size; margin: 1rem 0; }
.figure svg, .figure img { max-width: 100%; height: auto; display: block; }
.figure .narrow { display: none; }
@container (max-width: 34rem) { .figure .wide { display: none; } .figure .narrow { display: block; } }
""" + "\n".join(  # light-dark() follows the page's color-scheme: that of the system, of Streamlit's menu, or of print
    f'svg.marks [{of}="{light}" i] {{ {of}: light-dark({light}, {dark}); }}'
    for light, dark in INKS.items()
    for of in ("fill", "stroke")
)


def figure_html(figure: Any, name: str, described: str) -> str:
    """A figure as HTML, with its title, its subtitle and a description in words. Needs STYLE in the page.

    `name` is the figure's own within the page.
    """
    spec = without_controls(figure.to_dict())
    title, subtitle = words_of(spec)
    shapes = {"wide": bare(spec), "narrow": narrowed(bare(spec))}
    drawn = "".join(
        f'<div class="{shape}">{picture(svg_of(of, f"{name}-{shape}", described), described)}</div>'
        for shape, of in shapes.items()
    )
    above = f"<p><b>{escape(title)}</b><br>{escape(subtitle)}</p>"
    return f'<figure class="figure">{above}{drawn}<figcaption>{escape(described)}</figcaption></figure>'


def words_of(spec: Mapping[str, Any]) -> tuple[str, str]:
    """(title, subtitle) of a figure. A line of the subtitle that begins with a space continues the line before."""
    title = spec.get("title") or {}
    subtitle = title.get("subtitle", [])
    return title.get("text", ""), subtitle if isinstance(subtitle, str) else "; ".join(subtitle).replace(";  ", " ")


def bare(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification without its title and its background. Streamlit needs a padding for each side."""
    padding = dict.fromkeys(("left", "right", "top", "bottom"), 4)
    untitled = {name: part for name, part in spec.items() if name != "title"}
    return untitled | {"background": "transparent", "padding": padding}


def recoloured(text: str) -> str:
    """A figure as text, of JSON or SVG, in the inks of a dark page."""
    return re.sub(r"#[0-9a-fA-F]{6}\b", lambda ink: INKS.get(ink[0].upper(), ink[0]), text)


def narrowed(part: Any) -> Any:
    """A part of a specification for a phone: panels and legends below each other, and no plot wider than PHONE."""
    if isinstance(part, list):
        return [narrowed(one) for one in part]
    if not isinstance(part, dict):
        return part
    part = {name: value if name in ("data", "datasets") else narrowed(value) for name, value in part.items()}
    if "hconcat" in part:
        part["vconcat"] = part.pop("hconcat")
    if "columns" in part:
        part["columns"] = 1  # of a legend or of panels
    if isinstance(wide := part.get("width"), int | float) and wide > PHONE:
        square = part.get("height") == wide
        part |= {"width": PHONE} | ({"height": PHONE} if square else {})
    for guide in NARROW.keys() & part.keys():
        if isinstance(part[guide], dict):
            part[guide] = part[guide] | NARROW[guide]
    return part


NARROW = {"axis": {"labelLimit": 110}, "legend": {"orient": "bottom", "columns": 1, "labelLimit": PHONE}}


def svg_of(spec: Mapping[str, Any], name: str, described: str) -> str:
    """A specification as SVG for a page: the label of each mark is shown under the mouse, numbers have two digits."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(dict(spec))
    svg = re.sub(
        r'<path aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="(?:point|circle|bar)"([^>]*)/>',
        r"<path\2><title>\1</title></path>",
        svg,
    )
    svg = re.sub(r' (?:aria-[a-z]+|role)="[^"]*"', "", svg)
    svg = re.sub(r' (?:transform|d)="[^"]*"', lambda of: re.sub(r"(\.\d\d)\d+", r"\1", of[0]), svg)
    svg = re.sub(r'( id="|url\(#)', rf"\1{name}-", svg)  # ids of several figures in one page must differ
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(described)}" ', 1)


def picture(svg: str, described: str) -> str:
    """The SVG as HTML, or if it is very large an image of it, one for light and one for dark pages."""
    if len(svg) <= MOST_CHARACTERS:
        return svg
    import vl_convert

    pngs = (vl_convert.svg_to_png(of, ppi=144) for of in (svg, recoloured(svg)))
    light, dark = (f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in pngs)
    dark_source = f'<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
    return f'<picture>{dark_source}<img src="{light}" alt="{escape(described)}"></picture>'
