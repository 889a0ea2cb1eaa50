"""A chart of how the features of a narrow dictionary split in wider ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.comparison.splitting import Splitting
from analysis.plots.style import styled

CHILDREN_SHOWN = 8  # children of one parent that are drawn, at most


def splitting_chart(splitting: Splitting, labels: Mapping[str, Sequence[str]] | None = None, trees: int = 3) -> Any:
    """An Altair figure: the fate of the features at each step, and the largest trees with a column for each width.

    `labels` are a few words for each feature of each member.
    """
    import altair as alt

    boxes = boxes_of(splitting, labels or {}, trees)
    parts = [bars(splitting)]
    if boxes:
        high = max(box["y2"] for box in boxes)
        y = alt.Y("y:Q", axis=None).scale(domain=[high, 0], nice=False)
        base = alt.Chart(alt.Data(values=boxes)).encode(y=y)
        colour = alt.Color("cosine:Q", title="cosine to parent").scale(
            domain=[splitting.threshold, 1], range=["#dbe9f6", "#5fa8d8"]
        )
        colour = colour.legend(format=".1f", gradientLength=110)
        tooltip = [alt.Tooltip(f"{name}:N") for name in ("feature", "width", "label", "parent fires with it")]
        x = alt.X("x:Q", axis=None).scale(domain=[0, len(splitting.members)], nice=False)
        rect = base.mark_rect(stroke="white", strokeWidth=2, fill="#dddddd").encode(x=x, x2="x2:Q", y2="y2:Q")
        child = rect.transform_filter("datum.cosine != null").mark_rect(stroke="white", strokeWidth=2)
        words = base.mark_text(align="left", baseline="middle", dx=7, fontSize=12, limit=205, color="#111111")
        heads = alt.Chart(
            alt.Data(values=[{"x": i + 0.5, "text": f"F {width:,}"} for i, width in enumerate(splitting.widths)])
        ).mark_text(y=-10, fontSize=13)
        icicle = alt.layer(
            rect.encode(tooltip=tooltip),
            child.encode(color=colour, tooltip=tooltip),
            words.encode(x="x:Q", y="middle:Q", text="label:N"),
            heads.encode(x="x:Q", text="text:N"),
        )
        parts.append(icicle.properties(width=220 * len(splitting.members), height=20 * high))
    checked = [step.confirmed for step in splitting.steps if step.confirmed is not None]
    subtitle = [f"a parent has a cosine of {splitting.threshold:g} or more to its child"]
    if checked:
        shares = ", ".join(f"{100 * share:.0f}%" for share in checked)
        subtitle.append(f"and fires on at least half of its child's firings in {shares} of the cases")
    return styled(alt.vconcat(*parts, spacing=44), "How features split as the dictionary gets wider", subtitle)


def bars(splitting: Splitting) -> Any:
    """A bar chart of how many features are lost, kept, split or new at each step."""
    import altair as alt

    names = ("lost", "kept", "split into 2", "split into 3", "split into 4 or more", "new")
    steps = [f"F {step.narrow:,} → {step.wide:,}" for step in splitting.steps]
    rows = []
    for title, step in zip(steps, splitting.steps, strict=True):
        counts = [step.children.get(n, 0) for n in range(4)]
        counts += [sum(count for n, count in step.children.items() if n > 3), step.new]
        rows += [{"step": title, "fate": name, "count": n} for name, n in zip(names, counts, strict=True)]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("fate:N", title=None).sort(names),
        x=alt.X("count:Q", title="features").axis(tickCount=4, format=",d", grid=True),
    )
    layers = base.mark_bar(color="#0072B2"), base.mark_text(align="left", dx=4, fontSize=12).encode(text="count:Q")
    return (
        alt.layer(*layers)
        .properties(width=190, height=130)
        .facet(alt.Facet("step:N", title=None).sort(steps), columns=4)
    )


def boxes_of(splitting: Splitting, labels: Mapping[str, Sequence[str]], trees: int) -> list[dict[str, Any]]:
    """The boxes of an icicle chart. Each is as high as its number of leaves; trees are half a leaf apart."""
    boxes: list[dict[str, Any]] = []

    def place(level: int, feature: int, top: float) -> float:
        member = splitting.members[level]
        children = splitting.children(level, feature)
        cosine_C = splitting.cosine_F[level + 1][children] if len(children) else np.zeros(0)
        bottom = top
        for child in children[np.argsort(-cosine_C, kind="stable")][:CHILDREN_SHOWN]:
            bottom = place(level + 1, int(child), bottom)
        if (more := len(children) - CHILDREN_SHOWN) > 0:
            words = f"and {more} more"
            boxes.append({"x": level + 1, "x2": level + 2, "y": bottom, "y2": bottom + 1, "label": words})
            boxes[-1] |= {"middle": bottom + 0.5, "cosine": None}
            bottom += 1
        bottom = max(bottom, top + 1)
        share = splitting.cofiring_F[level][feature]
        boxes.append(
            {"x": level, "x2": level + 1, "y": top, "y2": bottom, "middle": (top + bottom) / 2}
            | {"feature": feature, "width": splitting.widths[level], "cosine": None}
            | {"label": f"{feature} {labels[member][feature]}" if member in labels else str(feature)}
            | {"parent fires with it": None if np.isnan(share) else f"{100 * share:.0f}%"}
        )
        if splitting.parent_F[level][feature] >= 0:
            boxes[-1]["cosine"] = float(splitting.cosine_F[level][feature])
        return bottom

    top = 0.0
    for level, root, _ in splitting.trees[:trees]:
        top = place(level, root, top) + 0.5
    return boxes
