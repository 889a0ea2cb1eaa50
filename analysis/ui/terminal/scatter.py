"""A scatter plot made of characters, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Sequence

LEAST_X, LEAST_Y = 0.1, 0.02  # smallest span of an axis, relative to its largest value: close points stay close
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def scatter(
    points: Sequence[tuple[str, float, float]], x_title: str, y_title: str, columns: int = 80, lines: int = 16
) -> list[str]:
    """Lines that plot points (kind, x, y): one letter for each kind, `*` where kinds overlap, and a legend."""
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
    """The lowest and highest value, spread apart to at least `least` times the largest absolute value."""
    low, high = min(values), max(values)
    lacking = (least * max(abs(low), abs(high)) or 1.0) - (high - low)
    return (low, high) if lacking <= 0 else (low - lacking / 2, high + lacking / 2)
