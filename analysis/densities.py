"""How often features fire: the picture in which dead and very frequent ones are seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.figures import KIND_STYLES, OTHER_STYLE, styled

EDGES = np.arange(-6, 0.01, 0.25)  # of log10 of the density


def figure(density_F: Mapping[str, np.ndarray], kinds: Mapping[str, str]) -> Any:
    """An Altair figure: how many features fire how often (log10), a line a dictionary; those that never do are said."""
    import altair as alt

    rows = [
        {"kind": kinds[name], "member": name, "density": float(edge + 0.125), "features": int(count)}
        for name, own_F in density_F.items()
        for edge, count in zip(EDGES, np.histogram(np.log10(own_F[own_F > 0]), EDGES)[0], strict=False)
    ]
    dead = sum(int((own_F == 0).sum()) for own_F in density_F.values())
    present = list(dict.fromkeys(kinds[name] for name in density_F))
    colours: list[Any] = [KIND_STYLES.get(kind, OTHER_STYLE)[0] for kind in present]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(interpolate="step")
        .encode(
            x=alt.X("density:Q", title="log10 of the share of rows on which a feature fires"),
            y=alt.Y("features:Q", title="features"),
            color=alt.Color("kind:N", title=None).scale(domain=present, range=colours),
            detail="member:N",
        )
        .properties(width=380, height=240)
    )
    return styled(chart, "Densities", f"a line a dictionary; {dead} features in all fire on no row")
