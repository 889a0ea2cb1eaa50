"""Heatmaps of features over the steps of training, drawn as one image, so that no hairlines appear between cells.

Shapes: N features shown, S steps.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
from PIL import Image

VIRIDIS = ("#440154", "#482878", "#3E4989", "#31688E", "#26828E", "#1F9E89", "#35B779", "#6DCD59", "#B4DE2C", "#FDE725")
WIDTH, HEIGHT, FINER = 380, 300, 2  # in pixels of the figure, and how many pixels of the image are on each


def step_heatmap(value_NxS: np.ndarray, steps: Sequence[int], order: str, title: str, ends: tuple[float, float]) -> Any:
    """A heatmap of the values of features over steps, empty where a value is not finite.

    `order` says which features come first, `title` what the values are, and `ends` are the values of the first and the
    last colour.
    """
    corner = alt.Chart(alt.Data(values=[{"step": str(step), "place": 0, "value": ends[0]} for step in steps]))
    colour = alt.Color("value:Q", title=title).scale(domain=list(ends), range=list(VIRIDIS))
    unmarked = alt.Axis(labels=False, ticks=False, grid=False, domain=False)
    axes = corner.mark_point(opacity=0).encode(
        x=alt.X("step:O", title="training step", sort=[str(step) for step in steps]).axis(
            labelOverlap=True, labelAngle=0
        ),
        y=alt.Y("place:Q", title=f"features, {order} on top").axis(unmarked),
        color=colour.legend(gradientOpacity=1),
    )
    image = alt.Chart(alt.Data(values=[{"image": png_address(value_NxS, ends)}]))
    cells = image.mark_image(width=WIDTH, height=HEIGHT, aspect=False, align="left", baseline="top")
    cells = cells.encode(x=alt.value(0), y=alt.value(0), url="image:N")
    return alt.layer(cells, axes).properties(width=WIDTH, height=HEIGHT)


def png_address(value_NxS: np.ndarray, ends: tuple[float, float]) -> str:
    """The values as a picture with a cell for each, in a data: address."""
    low, high = ends
    share_NxS = (np.nan_to_num(value_NxS, neginf=low, posinf=high) - low) / ((high - low) or 1)
    stops = np.linspace(0, 1, len(VIRIDIS))
    channels = [[int(colour[i : i + 2], 16) for colour in VIRIDIS] for i in (1, 3, 5)]
    rgb_NxSx3 = np.stack([np.interp(share_NxS, stops, channel) for channel in channels], -1)
    alpha_NxS = np.where(np.isfinite(value_NxS), 255, 0)
    pixels_NxSx4 = np.concatenate([rgb_NxSx3, alpha_NxS[..., None]], -1).round().astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels_NxSx4, "RGBA").resize((FINER * WIDTH, FINER * HEIGHT), Image.Resampling.NEAREST).save(
        png, "PNG"
    )
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
