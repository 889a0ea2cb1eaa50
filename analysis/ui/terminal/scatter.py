"""A plot in characters, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Sequence

LEAST_X, LEAST_Y = 0.1, 0.02  # of the largest value: what lies closer together shall not look far apart
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def scatter(
    points: Sequence[tuple[str, float, float]], x_title: str, y_title: str, columns: int, lines: int = 16
) -> list[str]:
    """Points (kind, x, y) as a letter a kind, with a legend; `*` where kinds fall on one place."""
    kinds = list(dict.fromkeys(kind for kind, _, _ in points))
    letters = dict(zip(kinds, LETTERS * (1 + len(kinds) // len(LETTERS)), strict=False))
    x_low, x_high = spread([x for _, x, _ in points], LEAST_X)
    y_low, y_high = spread([y for _, _, y in points], LEAST_Y)
    margin = max(len(f"{value:.3f}") for value in (y_low, y_high)) + 1
    width = columns - margin - 1
    grid = [[" "] * width for _ in range(lines)]
    for kind, x, y in points:
        column = round((x - x_low) / (x_high - x_low) * (width - 1))
        line = round((y_high - y) / (y_high - y_low) * (lines - 1))
        free = grid[line][column] in (" ", letters[kind])
        grid[line][column] = letters[kind] if free else "*"
    marks = {0: f"{y_high:.3f}", lines - 1: f"{y_low:.3f}"}
    left, right = f"{x_low:.1f}", f"{x_high:.1f}"
    drawn = [y_title]
    drawn += [f"{marks.get(i, ''):>{margin - 1}} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    drawn += [" " * margin + "+" + "-" * width]
    drawn += [" " * margin + left + x_title.center(width - len(left) - len(right) + 1) + right]
    return [*drawn, "  ".join(f"{letter} {kind}" for kind, letter in letters.items())]


def spread(values: Sequence[float], least: float) -> tuple[float, float]:
    """Lowest and highest, or a span around them that is `least` of the largest."""
    low, high = min(values), max(values)
    lacking = (least * max(abs(low), abs(high)) or 1.0) - (high - low)
    return (low, high) if lacking <= 0 else (low - lacking / 2, high + lacking / 2)
