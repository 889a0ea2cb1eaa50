"""A heatmap is one image, whose cells have the colours of its legend."""

import base64
import io

import numpy as np
import vl_convert
from PIL import Image

from analysis.plots.heatmap import FINER, HEIGHT, VIRIDIS, WIDTH, step_heatmap


def test_each_cell_has_its_colour_or_is_empty():
    values_NxS = np.array([[0.0, 1.0], [-np.inf, 0.5]])
    spec = step_heatmap(values_NxS, [0, 10], "earliest", "cosine", (0.0, 1.0)).to_dict()
    address = spec["layer"][0]["data"]["values"][0]["image"]
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert image.size == (FINER * WIDTH, FINER * HEIGHT)
    pixels_HxWx4 = np.asarray(image)
    quarter = [pixels_HxWx4[y, x].tolist() for y in (100, -100) for x in (100, -100)]
    colours = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (VIRIDIS[0], VIRIDIS[-1])]
    assert [pixel[:3] for pixel in quarter[:2]] == colours and quarter[0][3] == 255
    assert quarter[2][3] == 0 and quarter[3][3] == 255


def test_no_cell_is_a_mark_of_its_own():
    spec = step_heatmap(np.ones((256, 12)), list(range(12)), "earliest", "cosine", (0.0, 1.0)).to_dict()
    svg = vl_convert.vegalite_to_svg(spec)
    assert svg.count("<image") == 1 and svg.count("<path") < 60
