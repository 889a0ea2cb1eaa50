"""Near-copies are found after edits, differ from texts that only share a form, and are in one split."""

import json
import random

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from harvest.request import HarvestRequest
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text.documents import Reading, documents
from harvest.text.near_copies import NearCopies
from harvest.text.passages import labelled_text
from harvest.text.windows import token_windows


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(documents(str(BUNDLED_CORPUS)))


def edited(text: str, share: float, rng: random.Random) -> str:
    """The text with a share of its words replaced, each by another of its words or by a new one."""
    words = text.split()
    for place in rng.sample(range(len(words)), max(1, round(share * len(words)))):
        words[place] = rng.choice([f"w{rng.random()}", rng.choice(words)])
    return " ".join(words)


FORMS = {
    "the same": lambda text: text,
    "a space more": lambda text: text.replace(" ", "  ", 1),
    "a capital": lambda text: text[:40] + text[40:].capitalize(),
    "all capitals": str.upper,
    "other quotes and full stops": lambda text: text.replace("'", "’").replace(".", " !"),
    "line breaks": lambda text: text.replace(". ", ".\n\n"),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
}


@pytest.mark.parametrize("form", FORMS)
def test_texts_that_differ_in_form_only_are_copies(texts, form):
    copies = NearCopies()
    originals = [copies.original(text) for text in texts[:300]]
    assert [copies.original(FORMS[form](text)) for text in texts[:300]] == originals


@pytest.mark.parametrize(
    "words, share, least", [(100, 0.01, 0.995), (100, 0.03, 0.98), (30, 0.034, 0.97), (20, 0.05, 0.95)]
)
def test_a_changed_word_or_two_make_a_near_copy(texts, words, share, least):
    rng, copies = random.Random(0), NearCopies()
    short = [" ".join(text.split()[:words]) for text in texts[:1500] if len(text.split()) >= words][:500]
    originals = [copies.original(text) for text in short]
    found = [copies.original(edited(text, share, rng)) == of for text, of in zip(short, originals, strict=True)]
    assert np.mean(found) >= least
    assert len(set(originals)) >= 499  # different texts are not copies


def test_a_script_without_spaces_has_near_copies_too():
    rng = random.Random(0)
    texts = ["".join(rng.choice("日本語東京都大学生先水火木金土人山川") for _ in range(200)) for _ in range(100)]
    copies = NearCopies()
    originals = [copies.original(text) for text in texts]
    assert originals == list(range(100))
    assert [copies.original(f"{text[:70]}空{text[71:]}") for text in texts] == originals


@pytest.mark.parametrize("text", ["The capital of {} is {}.", "{} met {} at the old bridge in the town."])
def test_short_texts_of_one_form_are_not_copies(text):
    copies = NearCopies()
    assert not any(copies.is_copy(text.format(f"a{i}", f"b{i}")) for i in range(50))
    assert copies.is_copy(text.format("A3", "B3").replace(" ", "\n"))


def six_of_each(texts: list[str], rng: random.Random) -> list[tuple[int, str]]:
    """(number of a text, a near-copy of it), six for each text, in random order."""
    forms = list(FORMS.values())
    copies = [
        (number, text)
        for number, original in enumerate(texts)
        for text in (*(rng.choice(forms)(original) for _ in range(3)), *(edited(original, 0.01, rng) for _ in range(3)))
    ]
    return rng.sample(copies, len(copies))


def test_near_copies_are_in_one_split(tokenizer, texts, tmp_path):
    copies = six_of_each(texts[:500], random.Random(0))
    path = tmp_path / "copies.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for _, text in copies))
    request = HarvestRequest(n_samples=10**6, held_out=0.2, seq_len=20)
    windows = token_windows(str(path), tokenizer, request, reading := Reading())
    train, held_out = ({copies[d][0] for d in windows[name].documents_W} for name in ("train", "held_out"))
    assert len(train & held_out) <= 2 and 0.14 < len(held_out) / 500 < 0.26
    assert reading.documents == 3000 and abs(reading.near_copies - 2500) <= 10 and reading.copies_together


def test_near_copies_are_split_if_all_documents_follow_one_template(tokenizer, tmp_path):
    path = tmp_path / "template.jsonl"
    lines = [f"The rain fell on hill number {i} and the river rose for the whole night." for i in range(200)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in [*lines, *map(str.upper, lines)]))
    windows = token_windows(str(path), tokenizer, HarvestRequest(n_samples=10**6, seq_len=5), reading := Reading())
    sides = [{d % 200 for d in windows[name].documents_W} for name in ("train", "held_out")]
    assert all(sides) and not sides[0] & sides[1]  # texts that differ in form only are still in one split
    assert reading.near_copies > 300 and not reading.copies_together


def test_labelled_near_copies_are_in_one_split(texts, tmp_path):
    copies = six_of_each(texts[:100], random.Random(0))
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": str(of)}) + "\n" for of, text in copies))
    found = labelled_text(path, ("label",), 600, 0.5, seed=0)
    labels = found.labels["label"]
    assert len(set(labels[found.is_train_N]) & set(labels[~found.is_train_N])) <= 1
    assert 0.3 < found.is_train_N.mean() < 0.7
