"""Passages with a concept and comparable passages without it, from the bundled corpus."""

import json
import random
from itertools import islice

import pytest

from harvest.errors import InputError
from harvest.model.language_model import LanguageModel
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text.concepts import NO_DOCUMENT, gather, sentences_of
from harvest.text.documents import documents
from harvest.text.folding import Phrase


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load(str(BUNDLED_MODEL))


def test_passages_contain_the_phrase_and_others_are_comparable(model):
    of = gather("The golden  gate bridge", str(BUNDLED_CORPUS), model.tokenizer, 20, 1)
    texts, concept = list(documents(str(BUNDLED_CORPUS))), of.is_concept_N
    assert len(set(of.document_N)) == len(concept) >= 26 + 120 and (of.document_N != NO_DOCUMENT).all()
    assert of.documents_read == len(texts)
    holds = ["golden gate bridge" in texts[number].lower() for number in of.document_N]
    assert holds == concept.tolist()
    lengths = of.passages.counts_WxT.sum(1)
    for i, passage in enumerate(of.passages.tokens_WxT):
        text = model.tokenizer.decode(passage[: of.tokens_N[i]])
        assert text in texts[of.document_N[i]]
        marked = model.tokenizer.decode(passage[of.phrase_WxT[i]])
        assert ("golden gate bridge" in marked.lower()) == concept[i] and (
            "golden gate bridge" in text.lower()
        ) == concept[i]
    n = concept.sum()
    assert (lengths[n : 2 * n] == lengths[:n]).all()  # the first others, one for each passage
    assert (of.phrase_WxT[n : 2 * n] == of.phrase_WxT[:n]).all()

    def starts(i: int) -> set[int]:
        ids = model.tokenizer(texts[of.document_N[i]], add_special_tokens=False)["input_ids"]
        own = of.passages.tokens_WxT[i, : of.tokens_N[i]].tolist()
        return {start for start in range(len(ids)) if ids[start : start + len(own)] == own}

    assert all(starts(i) & starts(n + i) for i in range(n))  # at the same position in their documents
    again = gather("golden gate bridge", str(BUNDLED_CORPUS), model.tokenizer, 20, 1)
    assert (again.passages.tokens_WxT == of.passages.tokens_WxT).all()


def test_examples_are_compared_with_as_many_sentences_or_with_given_texts(model):
    examples = [
        "Two ships lay at the quay. They had come from Lisbon.",
        "A quay.",
        "The quay is old, said she.",
        "A quay.",
    ]
    of = gather("Xyzzy", str(BUNDLED_CORPUS), model.tokenizer, 8, 1, examples)
    assert of.is_concept_N.sum() == 3 and of.left_out == 1
    assert of.passages.item_W.tolist()[:3] == [0, 0, 0]  # an example of 19 tokens, in windows of 8
    assert abs(of.tokens_N[:3].mean() - of.tokens_N[3:].mean()) < 1.5
    given = ["a dog", "a cat ran", "a xyzzy here", "no more of it", "A quay."]
    of = gather("Xyzzy", str(BUNDLED_CORPUS), model.tokenizer, 8, 1, examples[:3], given)
    assert (of.document_N == NO_DOCUMENT).all() and (~of.is_concept_N).sum() == 3 and of.left_out == 2


def test_only_one_of_several_near_copies_is_a_passage(model, tmp_path):
    """If near-copies were kept, features would pass by chance."""
    rng = random.Random(0)
    texts = [text.split()[:60] for text in islice(documents(str(BUNDLED_CORPUS)), 200)]
    copies = []
    for number, words in enumerate(texts):
        held = [*words[:30], "xyzzy", *words[30:]] if number < 20 else words
        for copy in range(6):
            place = rng.randrange(len(words))
            changed = [*held[:place], f"w{copy}", *held[place + 1 :]] if copy > 2 else held
            copies.append((number, (" ", "  ")[copy % 2].join(changed).upper() if copy == 2 else " ".join(changed)))
    rng.shuffle(copies)
    path = tmp_path / "copies.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for _, text in copies))
    examples = ["Near the old mill the river turns and the road goes on to the town", "Two ships lay at the quay."]
    of = gather("xyzzy", str(path), model.tokenizer, 20, 1, [*examples, examples[0].upper(), f"{examples[0]}!"])
    originals = [copies[document][0] for document in of.document_N if document != NO_DOCUMENT]
    assert len(set(originals)) == len(originals) >= 120
    assert of.is_concept_N.sum() in (21, 22) and of.left_out == 2 and of.near_copies >= 990


def test_mentions_in_japanese_have_the_right_positions(model, tmp_path):
    texts = [f"{i}番目の町から日本語を学ぶ人が来た。" for i in range(5)] + [f"{i}匹の犬が走った。" for i in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    of = gather("日本", str(tmp_path / "a.jsonl"), model.tokenizer, 30, 1)
    for tokens_T, is_phrase_T, is_concept in zip(of.passages.tokens_WxT, of.phrase_WxT, of.is_concept_N, strict=True):
        assert ("日本" in model.tokenizer.decode(tokens_T[is_phrase_T])) == is_concept
    assert of.is_concept_N.sum() >= 3


def test_a_phrase_is_whole_words_in_any_case_without_its_article():
    found = Phrase("The  Hat")
    assert found.held_by("a red\nHAT.") and not found.held_by("that") and not found.held_by("hats")
    assert Phrase("the").held_by("The")
    text = 'He said "No." Then he left!\nAnd 3.5 of them'
    assert [text[a:b] for a, b in sentences_of(text)] == ['He said "No."', "Then he left!", "And 3.5 of them"]


@pytest.mark.parametrize("empty", ["", "  ", "?!"])
def test_a_phrase_without_a_word_is_refused(empty):
    with pytest.raises(InputError, match="has no word in it"):
        Phrase(empty)


def test_documents_too_short_or_with_an_example_in_them_are_left_out(model, tmp_path):
    lines = [
        "",
        " ",
        "Fog",
        "fog at sea",
        "thick fog came in over the harbour",
        "no ship sailed. None.",
        "Then the fog left!",
    ]
    records = [json.dumps({"text": text}) for text in (*lines, *(f"Dog {i} ran home." for i in range(9)))]
    (tmp_path / "corpus.jsonl").write_text("\n".join(records))
    of = gather(
        "fog", str(tmp_path / "corpus.jsonl"), model.tokenizer, 6, 1, examples=["Then the fog left!", "mist rose"]
    )
    texts = list(documents(str(tmp_path / "corpus.jsonl")))
    assert {texts[n] for n in of.document_N[of.is_concept_N] if n != NO_DOCUMENT} == {lines[3], lines[4]} | (
        {lines[2]} if len(model.tokenizer(lines[2])["input_ids"]) > 1 else set()
    )
    assert (of.tokens_N <= 8).all() and (~of.is_concept_N).sum() == 10
    with pytest.raises(InputError, match="is 10 tokens, but a window of this run has room for only 2"):
        gather(
            "thick fog came in over the harbour",
            str(tmp_path / "corpus.jsonl"),
            model.tokenizer,
            3,
            1,
            ["a b c", "d e"],
        )
    with pytest.raises(InputError, match="'f' .--examples. has no token after the first"):
        gather("fog", str(tmp_path / "corpus.jsonl"), model.tokenizer, 6, 1, ["f"])
    (tmp_path / "alone.txt").write_text("\n<|endoftext|>\n".join([f"fog number {i}" for i in range(5)]))
    with pytest.raises(
        InputError, match="0 texts without 'fog', but at least 3 are needed.*: give texts without it .--against"
    ):
        gather("fog", str(tmp_path / "alone.txt"), model.tokenizer, 6, 1)
