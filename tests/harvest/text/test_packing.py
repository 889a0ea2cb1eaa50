"""Joined documents: their windows, and the rows that they have, next to what is written here by hand."""

import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from analysis.features.activations import chunks, feature_values
from analysis.pages.feature import shown_contexts
from harvest.capture import harvest
from harvest.errors import InputError
from harvest.model.language_model import LanguageModel
from harvest.request import HarvestRequest, Site
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text.documents import documents
from harvest.text.windows import token_windows
from sae_jax.config import TrainConfig
from sae_jax.formats.trained import fold_normalization, trained_dictionary
from sae_jax.members import members_of

END = 0  # <|endoftext|> of the bundled model
SITE = Site(1, "mlp_out")


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load(str(BUNDLED_MODEL), device="cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    request = HarvestRequest(
        model_name="bundled", dataset="bundled", layer=1, hook="mlp_out", n_samples=60, seq_len=100, pack=True
    )
    return harvest(request, tmp_path_factory.mktemp("cache"), shard_bytes=1 << 17)[SITE]


def packed(path, tokenizer, *documents: list[int], **settings):
    path.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in documents))
    request = HarvestRequest(seq_len=4, held_out=1.0, pack=True, **settings)
    return token_windows(str(path), tokenizer, request)["held_out"]


def test_windows_go_on_over_separators_that_have_no_row(tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)
    documents = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11, 12]]
    windows = packed(tmp_path / "a.jsonl", tokenizer, *documents)
    assert windows.tokens_WxT.tolist() == [[1, 2, 3, 4], [5, END, 6, 7], [END, 8, 9, 10]]
    assert windows.others["kept"].tolist() == [[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1]]
    assert windows.others["token_documents"].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 2, 2, 2]]
    assert windows.documents_W.tolist() == [0, 0, 1]
    assert "kept" not in packed(tmp_path / "a.jsonl", tokenizer, *documents, special_tokens=True).others


def test_a_tokenizer_without_a_separator_is_refused(tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)
    tokenizer.eos_token = tokenizer.bos_token = None
    with pytest.raises(InputError, match="--pack: the tokenizer of .* has no token that separates texts"):
        packed(tmp_path / "a.jsonl", tokenizer, [1, 2, 3])


def test_each_row_is_the_activation_at_its_place(model, store):
    for split in (store.train, store.held_out):
        x_WxTxD = model.activations(split.windows, [SITE])[SITE]
        assert (split.windows == END).any() and len(split) == (split.windows[:, 1:] != END).sum()
        windows_N, positions_N = split.places(np.arange(len(split)))
        np.testing.assert_allclose(split.read(0, len(split)), x_WxTxD[windows_N, positions_N], rtol=2e-3, atol=1e-3)
        for row in range(0, len(split), 37):
            tokens_T, position, _ = split.context(row)
            assert position == positions_N[row] > 0 and tokens_T[position] != END
            np.testing.assert_array_equal(tokens_T, split.windows[windows_N[row]])


def test_windows_and_rows_are_found_from_each_other(store):
    split = store.train
    windows_W = np.array([0, 3, split.n_windows - 1])
    rows_N = split.window_rows(windows_W)
    np.testing.assert_array_equal(np.unique(split.places(rows_N)[0]), windows_W)
    assert len(rows_N) == split.kept_positions(0, split.n_windows)[windows_W].sum()
    assert split.rows_between(3, 4) == (split.window_rows(np.array([3]))[0], split.window_rows(np.array([3]))[-1] + 1)
    rows_N = np.arange(len(store.train) - 5, len(store.train) + 5)
    windows_N, positions_N = store.places(rows_N)
    assert windows_N[4] == split.n_windows - 1 and windows_N[5] == split.n_windows
    np.testing.assert_array_equal(positions_N[5:], store.held_out.places(np.arange(5))[1])


def test_passes_over_the_store_know_token_position_and_document_of_each_row(store):
    numbered = 0
    for chunk in chunks(store, 700):
        for index in range(0, len(chunk.row_N), 41):
            row = chunk.row_N[index]
            split = store.train if row < len(store.train) else store.held_out
            tokens_T, position, document = split.context(row - (0 if split is store.train else len(store.train)))
            assert (tokens_T[position], document) == (chunk.token_N[index], chunk.document_N[index])
            assert position == chunk.position_N[index] + split.first_position
            assert chunk.window_N[index] == store.places(np.array([row]))[0][0]
        np.testing.assert_array_equal(chunk.row_N, numbered + np.arange(len(chunk.row_N)))
        numbered += len(chunk.row_N)
    assert numbered == len(store.train) + len(store.held_out)


def test_the_document_of_a_token_is_the_one_it_is_in(store):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)
    texts = list(documents(str(BUNDLED_CORPUS)))
    for row in range(50, len(store.train), 501):
        tokens_T, position, document = store.train.context(row)
        start = position - int((np.cumsum(tokens_T[position::-1] == END) == 0).sum()) + 1
        assert tokenizer.decode(tokens_T[start : position + 1]) in texts[document]


@pytest.fixture(scope="module")
def dictionary(store):
    config = TrainConfig(activation="topk", k=4, hidden_dim=32)
    (member,) = members_of(config, (SITE,))
    rng = np.random.default_rng(0)
    W_dec = rng.standard_normal((32, store.d_model)).astype(np.float32)
    tensors = {"W_encT": W_dec, "W_dec": W_dec, "b_enc": np.zeros(32), "b_dec": np.zeros(store.d_model)}
    folded = fold_normalization(tensors, np.zeros(store.d_model), np.ones(store.d_model), np.ones(store.d_model))
    return trained_dictionary(member, folded, store.manifest)


def test_contexts_show_the_activations_of_their_rows_and_none_at_separators(store, dictionary):
    row_C = np.arange(3, len(store.train) + len(store.held_out), 211)
    feature_C = np.arange(len(row_C)) % 32
    found = feature_values(dictionary.sae, store, feature_C, row_C)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)
    for number, (row, feature) in enumerate(zip(row_C.tolist(), feature_C.tolist(), strict=True)):
        split, row = (store.train, row) if row < len(store.train) else (store.held_out, row - len(store.train))
        window = int(split.places(np.array([row]))[0][0])
        rows_N = split.window_rows(np.array([window]))
        value_T = np.zeros(store.manifest["seq_len"], np.float32)
        value_T[split.places(rows_N)[1]] = np.asarray(dictionary.sae.encode(split[rows_N].astype(np.float32)))[
            :, feature
        ]
        np.testing.assert_allclose(found.value_CxL[number], value_T, atol=1e-4)
        (shown,) = shown_contexts(dictionary, feature, store, tokenizer, row_C[number : number + 1])
        np.testing.assert_allclose(shown.value_T, value_T, atol=1e-4)
        assert not value_T[split.windows[window] == END].any()
