"""A chart of how the features of a narrow dictionary split in wider ones."""

from __future__ import annotations

from typing import Any

import altair as alt

from analysis.comparison.splitting import Splitting
from analysis.plots.style import styled


def splitting_chart(splitting: Splitting) -> Any:
    """An Altair figure: how many features are lost, kept, split or new at each step to a wider dictionary."""
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
    drawn = alt.layer(*layers).properties(width=190, height=130)
    drawn = drawn.facet(alt.Facet("step:N", title=None).sort(steps), columns=4)
    checked = [step.confirmed for step in splitting.steps if step.confirmed is not None]
    subtitle = [f"a parent has a cosine of {splitting.threshold:g} or more to its child"]
    if checked:
        shares = ", ".join(f"{100 * share:.0f}%" for share in checked)
        subtitle.append(f"and fires on at least half of its child's firings in {shares} of the cases")
    return styled(drawn, "How features split as the dictionary gets wider", subtitle)
