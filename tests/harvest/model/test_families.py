"""Activations of many model families at every hook and in every number format, next to plain transformers."""

import numpy as np
import pytest
from plain_hooks import LAYER, MODULES, differences
from tiny_models import write_model

from harvest.model.language_model import LanguageModel
from harvest.rehearsal import rehearse
from harvest.request import HOOKS, MODEL_DTYPES, Site

TOKENS_WxT = np.random.default_rng(0).integers(5, 4096, (6, 12), dtype=np.int32)
# The largest difference, relative to the largest value: rounding of the format, which adds up over the layers.
MOST = {"float32": 2**-18, "bfloat16": 2**-4, "float16": 2**-7}
REFUSED = {"gpt_neox": {"resid_mid"}, "phi": {"resid_mid"}, "bert": {"resid_mid", "mlp_out", "attn_out"}}
FAST = ("gpt2", "llama", "gemma3", "olmo", "bert")
CASES = [
    pytest.param(family, dtype, marks=() if family in FAST and dtype != "float16" else pytest.mark.slow)
    for family in MODULES
    for dtype in MODEL_DTYPES
    if dtype != "auto"
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function that returns the directory of a family, which is written once."""
    made = {}

    def get(family: str):
        if family not in made:
            made[family] = write_model(family, tmp_path_factory.mktemp("model"))
        return made[family]

    return get


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_every_hook_has_the_values_of_plain_transformers(written, family, dtype):
    apart = differences(family, written(family), TOKENS_WxT, dtype)
    assert {hook for hook, value in apart.items() if value is None} == REFUSED.get(family, set())
    assert max(value for value in apart.values() if value is not None) <= MOST[dtype]


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_every_hook_can_be_measured(written, family, dtype):
    """The unchanged model is reproduced from every site on, within the rounding of the format."""
    if family == "bert":
        pytest.skip("an encoder does not predict the next token")
    model = LanguageModel.load(str(written(family)), "cpu", dtype=dtype)
    sites = [Site(LAYER, hook) for hook in HOOKS if hook not in REFUSED.get(family, set())]
    assert {site: found.trouble for site, found in rehearse(model, TOKENS_WxT, sites, 1).items()} == dict.fromkeys(
        sites
    )
