"""Columns of a data set, data sets of token ids, and special tokens in a text: small inputs with their windows."""

import numpy as np
import pytest
from data_sets import lines, table
from transformers import PreTrainedTokenizerFast

from harvest.errors import InputError
from harvest.messages import say_text
from harvest.request import HarvestRequest
from harvest.sources import BUNDLED_MODEL
from harvest.text.concepts import texts_of
from harvest.text.documents import Reading, documents
from harvest.text.windows import special, token_windows

END = 0  # <|endoftext|> of the bundled model


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)


def windows_of(location: str, tokenizer, reading: Reading | None = None, **settings) -> list[list[int]]:
    """All windows of a text, in order."""
    request = HarvestRequest(held_out=1.0, **settings)
    return token_windows(location, tokenizer, request, reading)["held_out"].tokens_WxT.tolist()


@pytest.mark.parametrize("write", [lines, table])
def test_a_column_may_be_within_another(write, tmp_path):
    record = {"url": "u", "meta": {"text": "inner", "length": 5}, "body": "outer"}
    location = write(tmp_path / "a.jsonl", record, record | {"body": None})
    assert list(documents(location, column="meta.text")) == ["inner", "inner"]
    assert list(documents(location, column="body")) == ["outer", ""]
    with pytest.raises(InputError, match="meta.text.*--text-column"):
        list(documents(location, column="meta.texts"))
    with pytest.raises(InputError, match="must be text, not int|its column meta.length holds int64"):
        list(documents(location, column="meta.length"))


def test_a_file_without_columns_refuses_one(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(InputError, match="--text-column body: .*a.txt has no columns: leave the flag out"):
        list(documents(str(tmp_path / "a.txt"), column="body"))


@pytest.mark.parametrize("write", [lines, table])
@pytest.mark.parametrize("column", ["input_ids", "tokens"])
def test_token_ids_are_read_as_they_are(write, column, tokenizer, tmp_path):
    ids = [7, 8, 9, 10, 11, 12, 13]
    location = write(tmp_path / "a.jsonl", {"source": "web", column: ids}, {"source": "book", column: [20, 21, 22]})
    reading = Reading()
    found = windows_of(location, tokenizer, reading, seq_len=3)
    assert found == [[7, 8, 9], [10, 11, 12], [20, 21, 22]] and reading.columns == [column]
    assert list(texts_of(location, None, tokenizer)) == [tokenizer.decode(ids), tokenizer.decode([20, 21, 22])]


def test_a_column_named_text_comes_before_token_ids(tmp_path):
    location = table(tmp_path / "a", {"input_ids": [1, 2], "text": "words"})
    assert list(documents(location)) == ["words"]
    assert [d.tolist() for d in documents(location, column="input_ids")] == [[1, 2]]


@pytest.mark.parametrize("ids", [[1, -1], [1, 2**31], [1, "a"], [True, 2], [[1]]])
def test_bad_token_ids_are_named_with_their_line(ids, tmp_path):
    with pytest.raises(InputError, match="line 1: 'input_ids' must hold token ids, 0 or more"):
        list(documents(lines(tmp_path / "a.jsonl", {"input_ids": ids}), column="input_ids"))


def test_windows_end_before_special_tokens_in_texts_and_in_token_ids(tokenizer, tmp_path):
    first, second = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("The ships lay", " in the bay")
    )
    assert len(first) >= 3 and len(second) >= 3
    text = lines(tmp_path / "text.jsonl", {"text": "The ships lay<|endoftext|> in the bay"})
    ids = lines(tmp_path / "ids.jsonl", {"input_ids": [END, *first, END, END, *second, END]})
    for location in (text, ids):
        assert windows_of(location, tokenizer, seq_len=3) == [first[:3], second[:3]]
    assert windows_of(text, tokenizer, seq_len=3, special_tokens=True)[1] == [*first, END, *second][3:6]


def test_the_token_of_unknown_words_is_no_special_token():
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[PAD]": 2, "a": 3}
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "pad_token": "[PAD]"}
    assert sorted(special(PreTrainedTokenizerFast(tokenizer_object=backend, **names), HarvestRequest())) == [1, 2]
    alike = {"unk_token": "[UNK]", "eos_token": "[UNK]"}  # as in GPT-2
    assert special(PreTrainedTokenizerFast(tokenizer_object=backend, **alike), HarvestRequest()) == [0]


def test_the_share_of_tokens_that_are_in_no_window_is_reported(tokenizer, tmp_path):
    documents = [{"input_ids": list(range(1, 1 + length))} for length in (10, 3, 4, 9)]
    location, reading, said = lines(tmp_path / "a.jsonl", *documents), Reading(), list[str]()
    windows_of(location, tokenizer, reading, seq_len=4)
    assert (reading.tokens, reading.lost_tokens) == (8 + 4 + 8, 2 + 3 + 1)
    say_text(vars(reading), said.append)
    assert any("23% of the text's tokens are in no window" in line for line in said)
    windows_of(location, tokenizer, reading, seq_len=4, n_samples=2)  # what is not needed is not lost
    assert (reading.tokens, reading.lost_tokens) == (8, 0)


def test_a_number_of_tokens_is_a_number_of_windows():
    request = HarvestRequest(tokens=1050, seq_len=100)
    assert request == HarvestRequest(n_samples=10, seq_len=100) and request.to_json()["n_samples"] == 10
    with pytest.raises(InputError, match="--tokens 150: must be 2 to .* windows of --seq-len 100"):
        HarvestRequest(tokens=150, seq_len=100)


def test_token_ids_beyond_the_vocabulary_are_int32(tmp_path):
    (ids_T,) = documents(lines(tmp_path / "a.jsonl", {"input_ids": [2**31 - 1]}))
    assert ids_T.dtype == np.int32
