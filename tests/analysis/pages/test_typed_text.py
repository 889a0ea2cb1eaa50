"""A typed text is encoded as the same text was in training."""

import numpy as np
import pytest
from command_line import THREE_KINDS, shared_cache, trained

from analysis.pages.typed_text import read_text
from harvest.errors import InputError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    return trained(tmp_path_factory.mktemp("typed") / "run", cache, *THREE_KINDS, "--epochs", "1")


def test_it_has_the_features_of_the_windows_in_the_store(run, cache):
    for name in run.members:
        store, compared = run.store(run.site(name), cache), 0
        sae, tokenizer = run.dictionary(name).sae, run.language_model.tokenizer
        for window, tokens_T in enumerate(store.train.windows[:30]):
            text = tokenizer.decode(tokens_T)
            if tokenizer(text, add_special_tokens=False)["input_ids"] != tokens_T.tolist():
                continue  # a window that begins inside a character
            found = read_text(run, name, text)
            assert "".join(found.tokens) == text
            rows_PxD = store.train.read(window * 9, (window + 1) * 9).astype(np.float32)
            stored_PxF = np.asarray(sae.encode(rows_PxD))
            values_TxF = found.values_TxF.toarray()
            assert values_TxF.shape == (10, 48) and not values_TxF[0].any()
            both_PxF = (stored_PxF != 0) & (values_TxF[1:] != 0)  # rounding sometimes adds or removes a feature
            np.testing.assert_allclose(values_TxF[1:][both_PxF], stored_PxF[both_PxF], atol=0.02, rtol=0.01)
            assert both_PxF.sum() > 0.95 * (stored_PxF != 0).sum() > 0
            compared += 1
        assert compared > 10


def test_long_and_empty_texts(run):
    name = next(iter(run.members))
    longest = run.language_model.bridge.cfg.n_ctx
    whole = read_text(run, name, " the" * longest)
    assert len(whole.tokens) == whole.values_TxF.shape[0] == longest
    assert whole.values_TxF[-1:].nnz  # a text that is longer than the training windows is read to its end
    with pytest.raises(InputError, match=f"has {longest + 1} tokens: the model reads at most {longest}"):
        read_text(run, name, " the" * (longest + 1))
    with pytest.raises(InputError, match="no token in this text"):
        read_text(run, name, "")
    assert read_text(run, name, "A").values_TxF.nnz == 0  # the first position is left out, as in training
