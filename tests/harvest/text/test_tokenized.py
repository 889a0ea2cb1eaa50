"""Long texts that are tokenized in pieces have the same tokens as the whole text, for all types of tokenizers."""

import math
import random
from collections import Counter

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text import tokenized as module
from harvest.text.documents import documents
from harvest.text.tokenized import tokenized

TEXTS = list(documents(str(BUNDLED_CORPUS)))[:400]


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """A tokenizer like that of Llama 2: no pre-tokenizer, a space before the text, bytes for unknown characters."""
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learning = Tokenizer(models.BPE(unk_token="<unk>"))
    learning.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learning.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learning.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=1000, special_tokens=special))
    learned = Tokenizer.from_str(learning.to_str().replace('"byte_fallback":false', '"byte_fallback":true'))
    learned.pre_tokenizer = pre_tokenizers.Sequence([])
    return PreTrainedTokenizerFast(tokenizer_object=learned, unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """A tokenizer like that of T5, but for whole lines, so that its pieces may contain spaces."""
    words = Counter(f"▁{word}" for text in TEXTS for word in text.split())
    parts = Counter(word[i : i + size] for word in words for size in (1, 2, 3) for i in range(len(word) - size + 1))
    counts = Counter(dict(words.most_common(800))) + Counter(dict(parts.most_common(600)))
    pieces = [("<unk>", 0.0), *((piece, math.log(n / counts.total())) for piece, n in counts.items())]
    learned = Tokenizer(models.Unigram(pieces, unk_id=0))
    learned.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    learned.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    return PreTrainedTokenizerFast(tokenizer_object=learned, unk_token="<unk>")


def word_piece() -> PreTrainedTokenizerFast:
    learned = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learned.normalizer, learned.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    learned.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=1000, special_tokens=["[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=learned, unk_token="[UNK]")


TOKENIZERS = {
    "byte-level BPE": lambda: PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL),
    "sentencepiece BPE": sentencepiece_bpe,
    "unigram": unigram,
    "word pieces": word_piece,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def mixed(rng: random.Random) -> str:
    odd = [
        "日本の首都は東京です。" * 3,
        "naïve café — déjà vu 😀👩‍👩‍👧 …",
        "  x\n\n\n\ty = {a: 1}\r\n",
        "a" * 700,
        " " * 300,
    ]
    return "".join(rng.choice([rng.choice(TEXTS)[:300], rng.choice(odd)]) for _ in range(120))


KINDS = {
    "paragraphs": lambda rng: "\n\n".join(rng.sample(TEXTS, 30)),
    "one line": lambda rng: " ".join(" ".join(rng.sample(TEXTS, 30)).split()),
    "mixed": mixed,
    "no spaces": lambda rng: "".join(rng.choice("日本東京都語人大学生、。のは") for _ in range(9000)),
    "digits": lambda rng: "".join(rng.choice("0123456789") for _ in range(9000)),
    "long runs": lambda rng: TEXTS[0] + " " * 6000 + TEXTS[1] + "ab" * 5000 + TEXTS[2],
}


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_tokens_of_the_whole(tokenizer, kind, monkeypatch):
    for name, size in (("LONG", 3000), ("PIECE", 3000), ("OVERLAP", 800)):
        monkeypatch.setattr(module, name, size)
    rng = random.Random(0)
    for _ in range(3):
        text = KINDS[kind](rng)
        whole = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        (ids, short) = tokenized(tokenizer, [text, TEXTS[0]], len(whole))
        assert list(ids) == whole
        assert list(short) == tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
        (first,) = tokenized(tokenizer, [text], 500)
        assert list(first[:500]) == whole[:500]


def test_long_texts_are_tokenized_in_pieces_until_there_are_enough_tokens(monkeypatch):
    lengths, tokenizer = [], TOKENIZERS["byte-level BPE"]()

    def noting(text, **options):
        lengths.append(len(text))
        return tokenizer(text, **options)

    noting.is_fast = True
    text = "\n".join(TEXTS) * 3
    (ids,) = tokenized(noting, [text], 10**9)
    assert max(lengths) <= module.PIECE + module.OVERLAP and sum(lengths) < 1.1 * len(text) and len(ids) > 1e5
    lengths.clear()
    tokenized(noting, [text], 1000)
    assert sum(lengths) <= 2 * module.PIECE + module.OVERLAP
