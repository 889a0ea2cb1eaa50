"""Token windows of a text: all types of text sources, the split, the quotas, and unreadable texts."""

import gzip
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from harvest.errors import InputError
from harvest.messages import say_text
from harvest.request import HarvestRequest
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text.columns import column_to_read, kinds_of_rows
from harvest.text.documents import Reading, documents
from harvest.text.windows import token_windows

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


def test_windows_are_consecutive_and_no_document_is_in_both_splits(tokenizer):
    windows = token_windows(CORPUS, tokenizer, HarvestRequest(n_samples=300, seq_len=16))
    texts = read(BUNDLED_CORPUS)
    for split in windows.values():
        for document in np.unique(split.documents_W):
            rows = split.tokens_WxT[split.documents_W == document]
            ids = tokenizer(texts[document], add_special_tokens=False)["input_ids"]
            assert rows.ravel().tolist() == ids[: rows.size]
            last = document == split.documents_W[-1]  # the document that the quota may cut
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


def test_about_the_requested_share_of_documents_is_held_out(tokenizer):
    request = HarvestRequest(n_samples=10**6, held_out=0.2, seq_len=8)  # more than the text has
    windows = token_windows(CORPUS, tokenizer, request)
    train, held_out = (len(np.unique(windows[split].documents_W)) for split in ("train", "held_out"))
    assert train + held_out == len(read(BUNDLED_CORPUS))
    assert 0.18 < held_out / (train + held_out) < 0.22


def test_equal_documents_are_in_the_same_split(tokenizer, tmp_path):
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


def test_a_short_text_gives_fewer_windows(tokenizer, tmp_path):
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


def test_a_single_text_file_is_split_at_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\ntwo\r\n\r\n\n \nthrée\n".encode())
    assert read(tmp_path / "a.txt") == ["one\ntwo", "thrée"] == read(tmp_path)


def test_end_of_text_marks_replace_blank_lines_as_separators(tmp_path):
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
    """In the cache, the client chooses files by the data set's card. In any other folder, all files count."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for parent in ("snapshots", "datasets--org--texts/snapshots"):
        folder = tmp_path / parent / "2026-11"
        (folder / "data").mkdir(parents=True)
        (folder / "a.txt").write_text("a text of this folder")
        jsonl(folder / "data" / "train-00000.jsonl", "a row of the data set")
    assert read(tmp_path / "snapshots" / "2026-11") == ["a text of this folder", "a row of the data set"]
    assert read(tmp_path / "datasets--org--texts" / "snapshots" / "2026-11") == ["a row of the data set"]


def test_a_hidden_file_is_read_where_it_is_named(tmp_path):
    assert read(jsonl(tmp_path / ".a.jsonl", "one")) == ["one"]


def test_jsonl_plain_and_zipped(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", "one\n\ntwo", "", "drei ß")
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes() + b"\n"))
    assert read(path) == read(zipped) == ["one\n\ntwo", "", "drei ß"]


def test_a_null_is_an_empty_document_and_keeps_its_number(tokenizer, tmp_path):
    lines = [json.dumps({"url": "u", "text": f"{i} {'some words ' * i}" if i % 2 else None}) for i in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert read(tmp_path / "a.jsonl")[:2] == ["", "1 some words "] and len(read(tmp_path / "a.jsonl")) == 100
    windows = token_windows(str(tmp_path / "a.jsonl"), tokenizer, HarvestRequest(seq_len=3), reading := Reading())
    assert all((split.documents_W % 2 == 1).all() for split in windows.values())
    assert reading.columns == ["text"] and reading.documents == 100


STRINGS = {
    "string": lambda texts: pa.array(texts),
    "large string": lambda texts: pa.array(texts, pa.large_string()),
    "dictionary-encoded": lambda texts: pa.array(texts).dictionary_encode(),
    "dictionary-encoded large": lambda texts: pa.array(texts, pa.large_string()).dictionary_encode(),
    "binary": lambda texts: pa.array([text and text.encode() for text in texts], pa.binary()),
    "large binary": lambda texts: pa.array([text and text.encode() for text in texts], pa.large_binary()),
}


@pytest.mark.parametrize("kind", STRINGS)
def test_the_column_named_text_is_the_text_whatever_is_in_its_first_rows(tmp_path, kind):
    texts = [None] * 300 + [f"text {i} ß" for i in range(700)]
    table = {"id": list(range(1000)), "url": [f"u{i}" for i in range(1000)], "text": STRINGS[kind](texts)}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    found = list(documents(str(tmp_path / "a.parquet"), reading := Reading()))
    assert found == [text or "" for text in texts] and reading.columns == ["text"]


@pytest.mark.parametrize("kind", [kind for kind in STRINGS if "binary" not in kind])
def test_the_only_column_of_strings_is_the_text(tmp_path, kind):
    table = {"id": [1, 2], "image": [b"\xff", b"\xfe"], "body": STRINGS[kind](["one", None])}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert list(documents(str(tmp_path / "a.parquet"), reading := Reading())) == ["one", ""]
    assert reading.columns == ["body"]


def test_a_downloaded_data_set_is_read_without_its_other_splits_and_hidden_files(tmp_path):
    def parquet(name: str, *texts: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": list(texts), "url": ["u"] * len(texts)}), tmp_path / name)

    parquet("data/train-00000-of-00002.parquet", "one")
    parquet("data/train-00001-of-00002.parquet", "two")
    for other in ("data/test-00000-of-00001.parquet", "data/validation.parquet", "dev/part-0.parquet"):
        parquet(other, "not to train on")
    parquet("latest/contest.parquet", "three")
    (tmp_path / "x.txt").mkdir()
    (tmp_path / "README.md").write_text("# data")
    for hidden in ("data/._train-00000-of-00002.parquet", ".cache/huggingface/a.txt", ".git/b.jsonl"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hidden).write_bytes(b"\x00\x05\x16\x07 no text")
    assert list(documents(str(tmp_path), reading := Reading())) == ["one", "two", "three"]
    assert reading.left_out == [
        "data/test-00000-of-00001.parquet",
        "data/validation.parquet",
        "dev/part-0.parquet",
    ]
    assert list(documents(str(tmp_path / "dev"), reading := Reading())) == ["not to train on"] and not reading.left_out


@pytest.mark.parametrize(
    "name, is_read",
    [
        ("test.jsonl", False),
        ("my_test_set-01.jsonl", False),
        ("eval/a.jsonl", False),
        ("held-out.jsonl", False),
        ("Validation/x/a.jsonl", False),
        ("test/train.jsonl", True),
        ("attested.jsonl", True),
        ("development.jsonl", True),
        ("train/a.jsonl", True),
    ],
)
def test_the_split_of_a_file_comes_from_its_path(tmp_path, name, is_read):
    (tmp_path / "others").mkdir()
    jsonl(tmp_path / "others" / "train.jsonl", "always")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    jsonl(tmp_path / name, "perhaps")
    assert ("perhaps" in read(tmp_path)) == is_read


@pytest.mark.parametrize("name", ["dev-notes.txt", "the-acid-test.txt", "validation/a.txt"])
@pytest.mark.parametrize("beside", ["a.txt", "training/a.txt"])
def test_files_of_other_splits_are_left_out_only_beside_a_train_split(tmp_path, name, beside):
    for file in (name, beside):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(file)
    found = list(documents(str(tmp_path), reading := Reading()))
    if beside == "training/a.txt":
        assert found == [beside] and reading.left_out == [name]
    else:
        assert found == sorted([name, beside]) and not reading.left_out


@pytest.mark.parametrize("name", ["a.txt", "b/a.jsonl", "c.jsonl.gz", "d.parquet"])
def test_empty_files_of_a_folder_are_skipped_and_reported(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="all its text files are empty"):
        read(tmp_path)
    (tmp_path / "text.txt").write_text("a text")
    assert list(documents(str(tmp_path), reading := Reading())) == ["a text"] and reading.left_out == [name]
    said: list[str] = []
    say_text(asdict(reading), said.append)
    assert said == [f"not read, because they are empty or of a test or validation split: {name}"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".jsonl.gz", ".parquet"])
def test_a_suffix_may_be_in_capitals(tmp_path, suffix):
    path = tmp_path / f"a{suffix.upper()}"
    if suffix == ".txt":
        path.write_text("one")
    elif suffix == ".parquet":
        pq.write_table(pa.table({"text": ["one"]}), path)
    else:
        line = b'{"text": "one"}'
        path.write_bytes(gzip.compress(line, mtime=0) if suffix == ".jsonl.gz" else line)
    assert read(path) == read(tmp_path) == ["one"]


@pytest.mark.parametrize(
    "link, target, found",
    [
        ("data/link", "elsewhere", ["here", "there"]),
        ("data/link", "data", ["here"]),
        ("data/link", ".", ["here"]),
        ("data/a-link", "data/z", ["here"]),
        ("elsewhere/link", "data", ["here"]),
        ("data/link", "nowhere", ["here"]),
        ("data/.link", "elsewhere", ["here"]),
        ("data/__MACOSX", "elsewhere", ["here"]),
    ],
)
def test_a_linked_folder_is_read_once_and_a_loop_ends(tmp_path, link, target, found):
    for folder in ("data/z", "data/z/__MACOSX", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/z/a.txt").write_text("here")
    (tmp_path / "data/z/__MACOSX/b.txt").write_text("of the archiver")
    (tmp_path / "elsewhere/a.txt").write_text("there")
    (tmp_path / link).symlink_to(tmp_path / target)
    assert sorted(read(tmp_path / "data")) == found


@pytest.mark.parametrize(
    "lines, column",
    [
        ([{"content": "one", "id": 1}, {"id": 2, "content": None}], "content"),
        ([{"content": "one", "url": "u"}, {"content": "two"}], None),
        ([{"content": "one"}, {"id": 2}], None),
        ([{"content": "one"}, {"content": 2}], None),
        ([{"content": "one"}, {"content": "two", "text": "three"}], None),
        ([{"content": "one", "text": None}, {"content": "two", "text": "three"}], "text"),
    ],
)
def test_jsonl_is_read_by_its_only_key_of_strings(tmp_path, lines, column):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    if column is None:
        with pytest.raises(InputError, match='line 1: there is no text under the key "text"'):
            read(path)
    else:
        assert list(documents(str(path), reading := Reading())) == [line[column] or "" for line in lines]
        assert reading.columns == [column]


@pytest.mark.parametrize(
    "table, found",
    [
        ({"url": ["a", "b"], "text": pa.nulls(2)}, ["", ""]),
        ({"content": ["one ß".encode(), None]}, ["one ß", ""]),
    ],
)
def test_columns_of_nulls_and_a_single_column_of_bytes_are_text(tmp_path, table, found):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == found


@pytest.mark.parametrize("names", [["text", "text"], ["body", "body"], ["text", "id", "id"]])
def test_columns_of_one_name_are_refused(tmp_path, names):
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * len(names), names=names), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"a.parquet: several columns are named {names[-1]}: rename"):
        read(tmp_path / "a.parquet")


# Unreadable texts


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.jsonl", b'{"text": "x"}\nnot json\n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x", "id": 1}\n', 'line 2.*"text".*body, id'),
        ("a.jsonl", b'{"text": 3}\n', "line 1: 'text' must be text, not int"),
        ("a.jsonl", b"[1]\n", "line 1: not a JSON object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "line 2: not UTF-8 .byte 0xff"),
        ("a.txt", "zwölf".encode("latin-1"), "line 1: not UTF-8"),
        ("a.txt", b"\n \n", "no document"),
        ("a.jsonl", b"\n", "no document"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "document 0 is not valid Unicode"),
        ("a.jsonl.gz", b"not zipped", "cannot be read after line 0"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 1000, mtime=0)[:-20], "cannot be read after line"),
        ("a.parquet", b"not parquet", "cannot be read as parquet"),
        ("a.txt", b"", "empty"),
        ("a.csv", b"text\nx\n", "this type of file cannot be read"),
    ],
)
def test_bad_text_is_named_with_the_place(tokenizer, tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        token_windows(str(tmp_path / name), tokenizer, HarvestRequest())
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "columns, says",
    [
        ({"question": ["a"], "answer": ["b"], "n": [1]}, "none is named text and 2 hold.*question, answer, n"),
        ({"n": [1], "image": [b"a"]}, "none is named text and 0 hold.*n, image"),
        ({"url": ["a"], "text": [["a", "b"]]}, "its column text holds list<.*url, text"),
        ({"text": [b"a\xff"]}, "row 1: not UTF-8 .byte 0xff"),
    ],
)
def test_parquet_without_a_plain_text_column_names_its_columns(tmp_path, columns, says):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=says):
        read(tmp_path / "a.parquet")


def test_the_schema_of_a_stream_is_inferred_from_many_rows():
    rows = [{"url": f"u{i}", "text": None, "n": i} for i in range(300)] + [{"url": "u", "text": "t", "more": b"x"}]
    kinds = kinds_of_rows(rows)
    assert kinds == {"url": "text", "text": "text", "n": "int", "more": "bytes"}
    assert column_to_read("a", kinds) == "text"
    assert kinds_of_rows([{"a": "x"}, {"a": 1}, {"b": None}]) == {"a": "int and text", "b": "null"}


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="a.jsonl is not a regular file"):
        read(tmp_path / "a.jsonl")
