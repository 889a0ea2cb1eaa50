"""Text into windows: every kind of text source, the split, the quotas, and what cannot be read."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from harvest.errors import InputError
from harvest.request import HarvestRequest
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text import documents, token_windows

CORPUS = str(BUNDLED_CORPUS)


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)


def jsonl(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def read(path: Path) -> list[str]:
    return list(documents(str(path)))


# Windows


@pytest.mark.parametrize("n_samples, held_out, counts", [(200, 0.1, (180, 20)), (7, 0.01, (6, 1)), (2, 0.9, (1, 1))])
def test_quotas_are_exact(tokenizer, n_samples, held_out, counts):
    windows = token_windows(CORPUS, tokenizer, HarvestRequest(n_samples=n_samples, held_out=held_out, seq_len=11))
    for split, count in zip(("train", "held_out"), counts, strict=True):
        assert windows[split].tokens_WxT.shape == (count, 11) and windows[split].tokens_WxT.dtype == np.int32
        assert windows[split].documents_W.shape == (count,) and windows[split].documents_W.dtype == np.int32


def test_windows_are_consecutive_pieces_of_their_documents_and_no_document_is_on_both_sides(tokenizer):
    windows = token_windows(CORPUS, tokenizer, HarvestRequest(n_samples=300, seq_len=16))
    texts = read(BUNDLED_CORPUS)
    for split in windows.values():
        for document in np.unique(split.documents_W):
            rows = split.tokens_WxT[split.documents_W == document]
            ids = tokenizer(texts[document], add_special_tokens=False)["input_ids"]
            assert rows.ravel().tolist() == ids[: rows.size]
            last = document == split.documents_W[-1]  # the one that the quota may cut
            assert last or len(rows) == len(ids) // 16
        assert (np.diff(split.documents_W) >= 0).all()
    assert not set(windows["train"].documents_W) & set(windows["held_out"].documents_W)


def test_the_same_request_gives_the_same_windows_and_a_longer_one_begins_with_them(tokenizer):
    short, again, longer = (
        token_windows(CORPUS, tokenizer, HarvestRequest(n_samples=n, seq_len=20)) for n in (100, 100, 1000)
    )
    for split, windows in short.items():
        assert (windows.tokens_WxT == again[split].tokens_WxT).all()
        assert (windows.tokens_WxT == longer[split].tokens_WxT[: len(windows.tokens_WxT)]).all()


def test_about_the_asked_share_of_documents_is_held_out(tokenizer):
    request = HarvestRequest(n_samples=10**6, held_out=0.2, seq_len=8)  # more than there is: the whole text
    windows = token_windows(CORPUS, tokenizer, request)
    train, held_out = (len(np.unique(windows[split].documents_W)) for split in ("train", "held_out"))
    assert train + held_out == len(read(BUNDLED_CORPUS))
    assert 0.18 < held_out / (train + held_out) < 0.22


def test_equal_documents_are_on_the_same_side(tokenizer, tmp_path):
    texts = [f"The story of the number {i % 20} and what became of it in the end." for i in range(100)]
    path = jsonl(tmp_path / "a.jsonl", *texts)
    windows = token_windows(str(path), tokenizer, HarvestRequest(n_samples=100, held_out=0.4, seq_len=5))
    train, held_out = ({texts[d] for d in windows[split].documents_W} for split in ("train", "held_out"))
    assert train and held_out and not train & held_out


def test_no_special_token_is_added_and_long_documents_cause_no_warning(tokenizer, tmp_path, caplog):
    path = jsonl(tmp_path / "a.jsonl", *(f"{i} " + "a word and another " * 200 for i in range(30)))
    windows = token_windows(str(path), tokenizer, HarvestRequest(n_samples=60, seq_len=10))
    assert not any((split.tokens_WxT == tokenizer.bos_token_id).any() for split in windows.values())
    assert not caplog.records


def test_a_text_that_ends_early_gives_what_there_is(tokenizer, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *(f"{i} is a number among other numbers, and a good one." for i in range(50)))
    windows = token_windows(str(path), tokenizer, HarvestRequest(n_samples=10000, seq_len=5))
    assert 2 < sum(len(split.tokens_WxT) for split in windows.values()) < 10000


def test_too_little_text_says_how_much_there_was_and_what_to_do(tokenizer, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *(f"{i} words" for i in range(50)))
    with pytest.raises(InputError) as error:
        token_windows(str(path), tokenizer, HarvestRequest(seq_len=20))
    assert all(part in str(error.value) for part in (str(path), "20 tokens", "its 50 documents", "shorter --seq-len"))
    path = jsonl(tmp_path / "b.jsonl", "a long enough text " * 50)
    with pytest.raises(InputError, match="1 documents 0 belong to held_out.*larger --held-out"):
        token_windows(str(path), tokenizer, HarvestRequest(held_out=0.001))


# Kinds of text


def test_a_lone_text_file_is_divided_at_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\ntwo\r\n\r\n\n \nthrée\n".encode())
    assert read(tmp_path / "a.txt") == ["one\ntwo", "thrée"] == read(tmp_path)


def test_end_of_text_marks_divide_a_text_file_and_blank_lines_then_do_not(tmp_path):
    (tmp_path / "a.txt").write_text(
        "one\n\nstill one\n<|endoftext|>\ntwo<|endoftext|>three<|endoftext|><|endoftext|>\n"
    )
    assert read(tmp_path / "a.txt") == ["one\n\nstill one", "two", "three"]


def test_each_file_of_a_folder_is_a_document_in_the_order_of_names(tmp_path):
    (tmp_path / "b.txt").write_text("second\n\nstill second")
    (tmp_path / "a.txt").write_text("first")
    jsonl(tmp_path / "c.jsonl", "third", "fourth")
    (tmp_path / "notes.md").write_text("not a text source")
    assert read(tmp_path) == ["first", "second\n\nstill second", "third", "fourth"]


def test_only_the_hub_caches_own_layout_is_a_hub_data_set(tmp_path, monkeypatch):
    """There the client finds the files, as the data set's card says; in any other folder all count."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for parent in ("snapshots", "datasets--org--texts/snapshots"):
        folder = tmp_path / parent / "2026-11"
        (folder / "data").mkdir(parents=True)
        (folder / "a.txt").write_text("a text of this folder")
        jsonl(folder / "data" / "train-00000.jsonl", "a row of the data set")
    assert read(tmp_path / "snapshots" / "2026-11") == ["a text of this folder", "a row of the data set"]
    assert read(tmp_path / "datasets--org--texts" / "snapshots" / "2026-11") == ["a row of the data set"]


def test_jsonl_plain_and_zipped(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", "one\n\ntwo", "", "drei ß")
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes() + b"\n"))
    assert read(path) == read(zipped) == ["one\n\ntwo", "", "drei ß"]


def test_parquet_takes_the_column_text_or_the_only_strings(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(1000)], "title": ["t"] * 1000}), path)
    assert read(path) == [f"text {i}" for i in range(1000)]
    pq.write_table(pa.table({"id": [1, 2], "body": pa.array(["one", None], pa.large_string())}), path)
    assert read(path) == ["one", ""]


# What cannot be read


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.jsonl", b'{"text": "x"}\nnot json\n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x", "id": 1}\n', 'line 2.*"text".*body, id'),
        ("a.jsonl", b'{"text": 3}\n', "line 1: there is no text"),
        ("a.jsonl", b"[1]\n", "line 1: .*no object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "line 2: not UTF-8 .byte 0xff"),
        ("a.txt", "zwölf".encode("latin-1"), "line 1: not UTF-8"),
        ("a.txt", b"\n \n", "no document"),
        ("a.jsonl", b"\n", "no document"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "document 0 is not Unicode"),
        ("a.jsonl.gz", b"not zipped", "cannot be read after line 0"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 1000)[:-20], "cannot be read after line"),
        ("a.parquet", b"not parquet", "cannot be read as parquet"),
        ("a.txt", b"", "empty"),
        ("a.csv", b"text\nx\n", "not a kind of text file"),
    ],
)
def test_bad_text_is_named_with_the_place(tokenizer, tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        token_windows(str(tmp_path / name), tokenizer, HarvestRequest())
    assert name in str(error.value) and "\n" not in str(error.value)


def test_parquet_without_a_plain_text_column_names_its_columns(tmp_path):
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="question, answer, n"):
        read(tmp_path / "a.parquet")
