"""Tokens of a corpus as HTML: each is escaped, whatever it holds, and none is read as Markdown.

Colours are laid over the page's own, so that its ink stays legible in the light and the dark theme.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

POSITIVE, NEGATIVE = "86, 180, 233", "230, 159, 0"  # of Okabe and Ito
STRONGEST = 0.6  # opacity: more would drown the ink
STYLE = "line-height:1.9; white-space:pre-wrap; overflow-wrap:anywhere; margin:0 0 .5rem 0"
NOTE = "font-size:.8rem; opacity:.7; white-space:nowrap"


def coloured(tokens: Sequence[str], values: Iterable[float], largest: float, peak: int | None = None) -> str:
    """Tokens, each the stronger coloured the nearer its value is to the largest; `peak` is underlined."""
    spans = []
    for number, (token, value) in enumerate(zip(tokens, values, strict=True)):
        share = min(1.0, abs(value) / largest) if largest else 0.0
        style = f"background:rgba({POSITIVE if value > 0 else NEGATIVE}, {STRONGEST * share:.2f})" if share else ""
        if number == peak:
            style += ";font-weight:700;text-decoration:underline"
        spans.append(f'<span style="{style}" title="{value:.3g}">{visible(token)}</span>')
    return "".join(spans)


def visible(token: str) -> str:
    """Escaped; a line's end is shown as such, and does not break the line."""
    return escape(token).replace("\r", "").replace("\n", "↵")


def passage(content: str, note: str = "") -> str:
    """Coloured tokens as a paragraph, and what is to be said of it."""
    said = f' <span style="{NOTE}">{escape(note)}</span>' if note else ""
    return f'<p style="{STYLE}">{content}{said}</p>'


def bars(entries: Sequence[tuple[str, float]], digits: int = 3) -> str:
    """Tokens with their figures, a line each, and a bar as long as the figure."""
    largest = max((abs(value) for _, value in entries), default=0.0) or 1.0
    lines = []
    for token, value in entries:
        colour = POSITIVE if value > 0 else NEGATIVE
        share = 100 * abs(value) / largest
        fill = f"linear-gradient(90deg, rgba({colour}, .45) {share:.0f}%, transparent {share:.0f}%)"
        lines.append(
            f'<div style="display:flex; justify-content:space-between; gap:1rem; padding:.1rem .4rem; '
            f'margin-bottom:2px; background:{fill}"><code style="white-space:pre; background:none">{visible(token)}'
            f'</code><span style="opacity:.8">{value:.{digits}f}</span></div>'
        )
    return "".join(lines)
