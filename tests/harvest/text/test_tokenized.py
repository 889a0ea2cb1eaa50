"""Long texts are tokenized in pieces, with the tokens that they have whole wherever tokens begin at spaces."""

import random

import pytest
from transformers import PreTrainedTokenizerFast

from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text import tokenized as module
from harvest.text.tokenized import tokenized
from harvest.text.windows import documents

TEXTS = list(documents(str(BUNDLED_CORPUS)))[:400]
KINDS = {
    "paragraphs": lambda rng: "\n\n".join(rng.sample(TEXTS, 30)),
    "one line": lambda rng: " ".join(" ".join(rng.sample(TEXTS, 30)).split()),
    "long runs": lambda rng: TEXTS[0] + " " * 6000 + TEXTS[1] + " naïve 😀" * 5000 + TEXTS[2],
}


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_tokens_of_the_whole(tokenizer, kind, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 3000)
    rng = random.Random(0)
    for _ in range(3):
        text = KINDS[kind](rng)
        whole = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        (ids, short) = tokenized(tokenizer, [text, TEXTS[0]], len(whole))
        assert ids == whole
        assert short == tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
        (first,) = tokenized(tokenizer, [text], 500)
        assert first[:500] == whole[:500]


def test_a_text_without_spaces_is_cut_anywhere(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 3000)
    text = "".join(random.Random(0).choice("日本東京都語人大学生、。のは") for _ in range(9000))
    (ids,) = tokenized(tokenizer, [text], 10**9)
    assert tokenizer.decode(ids).count("\ufffd") == 0 and len(tokenizer.decode(ids)) == len(text)


def test_no_more_is_tokenized_at_a_time_than_a_piece_and_no_more_than_enough(tokenizer):
    lengths = []

    def noting(texts, **options):
        lengths.extend(map(len, texts))
        return tokenizer(texts, **options)

    text = "\n".join(TEXTS) * 3
    (ids,) = tokenized(noting, [text], 10**9)
    assert max(lengths) <= module.PIECE and sum(lengths) == len(text) and len(ids) > 1e5
    lengths.clear()
    tokenized(noting, [text], 1000)
    assert sum(lengths) <= module.PIECE
