"""Windows that the model continues: the new tokens are those that plain transformers draws, and only they have rows."""

import numpy as np
import pytest
import torch
from tiny_models import write_model
from transformers import AutoModelForCausalLM

from harvest.capture import harvest
from harvest.errors import InputError
from harvest.model.language_model import LanguageModel
from harvest.request import HarvestRequest, Site

SITE, NEW = Site(1, "resid_mid"), 6


def drawn_by_hand(directory, tokens_WxT: np.ndarray, end: int) -> np.ndarray:
    """The tokens that transformers draws after these, without a cache, never the end of a text."""
    network = AutoModelForCausalLM.from_pretrained(directory).eval()
    generator, tokens = torch.Generator().manual_seed(0), torch.from_numpy(tokens_WxT.astype(np.int64))
    for _ in range(NEW):
        with torch.inference_mode():
            logits_WxV = network(tokens).logits[:, -1].clone()
            logits_WxV[:, end] = -torch.inf
        p_WxV, order_WxV = logits_WxV.softmax(-1).sort(descending=True, stable=True)
        tokens = torch.cat([tokens, order_WxV.gather(1, torch.multinomial(p_WxV, 1, generator=generator))], 1)
    return tokens[:, -NEW:].numpy()


@pytest.mark.parametrize("bos", [False, True], ids=["without BOS", "behind BOS"])
def test_only_new_tokens_have_rows(tmp_path, bos):
    directory = write_model("llama", tmp_path / "model", bos=bos)
    asked = {"n_samples": 40, "seq_len": 9, "max_norm_ratio": 0.0, "store_dtype": "float32"}
    request = HarvestRequest(str(directory), "bundled", *SITE, **asked, generate=NEW)
    store = harvest(request, tmp_path / "cache")[SITE]
    text = harvest(HarvestRequest(str(directory), "bundled", *SITE, **asked), tmp_path / "cache")[SITE]
    model = LanguageModel.load(str(directory), "cpu")
    given = 9 - bos
    for split, same in ((store.train, text.train), (store.held_out, text.held_out)):
        assert np.array_equal(split.windows[:, :given], same.windows)
        with_bos_WxT = np.pad(same.windows, ((0, 0), (int(bos), 0)), constant_values=model.tokenizer.eos_token_id)
        assert np.array_equal(
            split.windows[:, given:], drawn_by_hand(directory, with_bos_WxT, model.tokenizer.eos_token_id)
        )
        assert len(split) == NEW * split.n_windows == len(split) // NEW * NEW
        expected_WxNxD = model.activations(split.windows, [SITE])[SITE][:, given:]
        np.testing.assert_allclose(split.read(0, len(split)), expected_WxNxD.reshape(len(split), -1), atol=1e-5)
    assert request.training_rows == NEW * request.training_windows


def test_what_cannot_be_continued_is_refused(tmp_path):
    with pytest.raises(InputError, match="--seq-len 100 \\+ --generate 29: must be at most 128"):
        harvest(HarvestRequest("bundled", "bundled", seq_len=100, generate=29), tmp_path)
    encoder = write_model("bert", tmp_path / "model")
    with pytest.raises(InputError, match="Writing text needs a model that reads from left to right"):
        harvest(HarvestRequest(str(encoder), "bundled", n_samples=20, generate=4), tmp_path)
