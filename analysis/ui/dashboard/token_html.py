"""Tokens of a corpus as HTML. All tokens are escaped.

Background colours are transparent, so that text stays legible in the light and in the dark theme.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

POSITIVE, NEGATIVE = "86, 180, 233", "230, 159, 0"  # colours of Okabe and Ito
STRONGEST = 0.6  # opacity of the strongest colour: with more, text would be hard to read
STYLE = "line-height:1.9; white-space:pre-wrap; overflow-wrap:anywhere; margin:0 0 .5rem 0"
NOTE = "font-size:.8rem; opacity:.7; white-space:nowrap"


def coloured(tokens: Sequence[str], values: Iterable[float], largest: float, peak: int | None = None) -> str:
    """Tokens on a background whose opacity grows with the token's value. The token at `peak` is underlined."""
    spans = []
    for number, (token, value) in enumerate(zip(tokens, values, strict=True)):
        share = min(1.0, abs(value) / largest) if largest else 0.0
        style = f"background:rgba({POSITIVE if value > 0 else NEGATIVE}, {STRONGEST * share:.2f})" if share else ""
        if number == peak:
            style += ";font-weight:700;text-decoration:underline"
        spans.append(f'<span style="{style}" title="{value:.3g}">{visible(token)}</span>')
    return "".join(spans)


def aligned_context(tokens: Sequence[str], values: Sequence[float], largest: float, peak: int, note: str) -> str:
    """A context on one line, with its peak in the same place as in all others. A click opens the whole context."""
    before, after = (
        coloured(tokens[part], values[part], largest, at) for part, at in ((slice(peak), None), (slice(peak, None), 0))
    )
    half, columns = "overflow:hidden; white-space:pre", "3.5rem minmax(0, 2fr) minmax(0, 3fr)"
    value = f'<span style="opacity:.7">{values[peak]:.2f}</span>'
    left = (
        f'<span style="display:flex; justify-content:flex-end; {half}"><span style="flex:none">{before}</span></span>'
    )
    right = f'<span style="{half}">{after}</span>'
    grid = f"display:grid; grid-template-columns:{columns}; cursor:pointer"
    line = f'<summary style="{grid}">{value}{left}{right}</summary>'
    return f"<details>{line}{passage(coloured(tokens, values, largest, peak), note)}</details>"


def visible(token: str) -> str:
    """The token escaped, with a visible symbol instead of a line break."""
    return escape(token).replace("\r", "").replace("\n", "↵")


def passage(content: str, note: str = "") -> str:
    """Coloured tokens as a paragraph, followed by a note."""
    small = f' <span style="{NOTE}">{escape(note)}</span>' if note else ""
    return f'<p style="{STYLE}">{content}{small}</p>'


def bars(entries: Sequence[tuple[str, float]]) -> str:
    """A line for each token with its value, and a bar whose length shows the value."""
    largest = max((abs(value) for _, value in entries), default=0.0) or 1.0
    lines = []
    for token, value in entries:
        colour = POSITIVE if value > 0 else NEGATIVE
        share = 100 * abs(value) / largest
        fill = f"linear-gradient(90deg, rgba({colour}, .45) {share:.0f}%, transparent {share:.0f}%)"
        lines.append(
            f'<div style="display:flex; justify-content:space-between; gap:1rem; padding:.1rem .4rem; '
            f'margin-bottom:2px; background:{fill}"><code style="white-space:pre; background:none">{visible(token)}'
            f'</code><span style="opacity:.8">{value:.3f}</span></div>'
        )
    return "".join(lines)
