"""The page on large runs has the figures that its script computes."""

from pathlib import Path

import pytest
from benchmarks import scale

PAGE = Path(__file__).parents[2] / "sae_jax" / "SCALE.md"


@pytest.mark.parametrize("block", scale.BLOCKS, ids=lambda block: block.__name__)
def test_the_page_has_what_the_script_prints(block):
    assert f"\n\n{block()}\n\n" in PAGE.read_text(), "paste it from `python tests/benchmarks/scale.py`"
