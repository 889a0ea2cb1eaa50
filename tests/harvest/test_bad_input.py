"""Bad models, texts and flags of a harvest: each is refused on one line, which names what was given and a fix."""

import gzip
import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import BUNDLED, environment, shared_cache
from data_sets import lines
from safetensors.torch import load_file, save_file
from tiny_models import write_model

import main
from harvest.model.tokenizer import load_tokenizer
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text.documents import documents

TINY = ("--n-samples", "20", "--seq-len", "8", "--epochs", "1", "--hidden-dim", "64", "--batch-size", "8")
TEXTS = [{"text": " ".join(f"word{n + m}" for m in range(20))} for n in range(30)]


def model(folder: Path, family: str = "llama", **options) -> Path:
    return write_model(family, folder / "model", **options)


def not_finite(folder: Path) -> Path:
    written = model(folder)
    tensors = load_file(written / "model.safetensors")
    name = next(name for name in tensors if "layers.0.mlp" in name)
    save_file(
        tensors | {name: torch.full_like(tensors[name], torch.nan)}, written / "model.safetensors", {"format": "pt"}
    )
    return written


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-20])
    return path


def zipped(path: Path) -> Path:
    path.write_bytes(gzip.compress("".join(f"{json.dumps(record)}\n" for record in TEXTS).encode()))
    return path


def table(path: Path, columns: dict) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def of_text(folder: Path, *records: dict) -> list[str]:
    return ["--dataset", lines(folder / "a.jsonl", *records), "--model-name", "bundled"]


def of_model(path: Path) -> list[str]:
    return ["--dataset", "bundled", "--model-name", str(path)]


Given = Callable[[Path], list[str]]
BAD: dict[str, tuple[Given, str]] = {
    "a model that is nowhere": (lambda f: of_model(f / "none"), "there is no such file or directory"),
    "a model without weights": (
        lambda f: [(model(f) / "model.safetensors").unlink(), *of_model(f / "model")][1:],
        "it lacks weights (model.safetensors): copy it whole",
    ),
    "a model with damaged weights": (
        lambda f: of_model(cut(model(f) / "model.safetensors").parent),
        "cannot be loaded",
    ),
    "a model without a tokenizer": (
        lambda f: [(model(f) / "tokenizer.json").unlink(), *of_model(f / "model")][1:],
        "it lacks a tokenizer (tokenizer.json): copy it whole",
    ),
    "an encoder-decoder": (lambda f: of_model(model(f, "t5")), "is an encoder-decoder, which is not supported: use"),
    "weights that are not finite": (lambda f: of_model(not_finite(f)) + ["--layer", "1"], "not finite: "),
    "a layer that the model lacks": (lambda f: [*BUNDLED, "--layer", "4"], "--layer 4: must be 0 to 3"),
    "a hook that the model lacks": (
        lambda f: [*of_model(model(f, "gpt_neox")), "--hook", "resid_mid"],
        "--hook resid_mid: ",
    ),
    "windows longer than the context": (
        lambda f: [*BUNDLED, "--seq-len", "129"],
        "--seq-len 129: must be at most 128, the context of the bundled model",
    ),
    "the first position behind BOS": (
        lambda f: [*of_model(model(f, bos=True)), "--keep-first-position"],
        "has no effect on windows behind BOS, where only BOS is left out: leave it out",
    ),
    "a text that is nowhere": (
        lambda f: ["--model-name", "bundled", "--dataset", str(f / "a.jsonl")],
        "there is no such file or directory",
    ),
    "a type of file that is no text": (
        lambda f: ["--model-name", "bundled", "--dataset", str(shutil.copy(BUNDLED_MODEL / "model.safetensors", f))],
        "this type of file cannot be read: give one of type .txt",
    ),
    "a text without documents": (lambda f: of_text(f), "the file is empty: use another text"),
    "documents shorter than a window": (
        lambda f: of_text(f, *({"text": f"one {n}"} for n in range(30))),
        "Use more or longer documents, a shorter --seq-len",
    ),
    "a line that is no JSON": (
        lambda f: [(f / "a.jsonl").write_text('{"text": "a"\n'), "--dataset", str(f / "a.jsonl")][1:],
        "a.jsonl",
    ),
    "a damaged .gz": (lambda f: ["--dataset", str(cut(zipped(f / "a.jsonl.gz")))], "a.jsonl.gz"),
    "a damaged table": (lambda f: ["--dataset", str(cut(table(f / "a.parquet", {"text": ["a"]})))], "a.parquet"),
    "two columns of text": (
        lambda f: of_text(f, *({"title": "a", "body": record["text"]} for record in TEXTS)),
        'no text under the key "text" (its keys are title, body): add it, or choose another key with --text-column',
    ),
    "a column that is not there": (
        lambda f: [*of_text(f, *TEXTS), "--text-column", "body"],
        'no text under the key "body" (its keys are text): add it',
    ),
    "a column of numbers": (lambda f: ["--dataset", str(table(f / "a.parquet", {"text": [1, 2, 3]}))], "and not text"),
    "token ids beyond the vocabulary": (
        lambda f: of_text(f, *({"input_ids": [4000 + (n * m * 37) % 200 for m in range(20)]} for n in range(1, 31))),
        "belongs to another model: use those of this model",
    ),
    "a chat for a model without a chat template": (
        lambda f: of_text(f, *({"messages": [{"role": "user", "content": r["text"]}]} for r in TEXTS)),
        "has no chat template, so it cannot read a chat: use another model",
    ),
    "a text that is not Unicode": (
        lambda f: [(f / "a.txt").write_bytes(b"caf\xe9 " * 99), "--dataset", str(f / "a.txt")][1:],
        "a.txt",
    ),
    "more rows for a batch than there are": (
        lambda f: [*BUNDLED, "--batch-size", "500"],
        "--batch-size 500 is larger than the 126 training rows: lower it, or raise --n-samples",
    ),
    "nothing to train on": (lambda f: [*BUNDLED, "--held-out", "1"], "--held-out 1 leaves nothing to train on: give"),
    "a store that is none": (lambda f: ["--rows", str(f)], "is no store: give a store, such as one that `import-rows"),
}


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    for name, value in environment(shared_cache(tmp_path_factory)).items():
        monkeypatch.setenv(name, value)


def run(tmp_path: Path, argv: list[str]) -> int:
    """Train on what is given, with tiny settings where it has none of its own."""
    tiny = [word for n in range(0, len(TINY), 2) if TINY[n] not in argv for word in TINY[n : n + 2]]
    always = ("--ce-windows", "0", "--run-dir", tmp_path / "run", "--cache-dir", tmp_path / "cache")
    return main.run_as_command([*map(str, (*argv, *([] if "--rows" in argv else tiny), *always))])


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused_on_one_line_with_a_fix(kind, tmp_path, capsys):
    given, says = BAD[kind]
    argv = given(tmp_path)
    capsys.readouterr()
    assert run(tmp_path, argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message
    assert says in message, message
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(("shift", "is_said"), [(0, False), (1777, True)], ids=["its own", "another's"])
def test_tokens_of_another_tokenizer_are_remarked_on(shift, is_said, tmp_path, capsys):
    """If the numbers of all tokens are shifted, the model has embeddings for them but cannot know the text."""
    tokenizer = load_tokenizer(str(BUNDLED_MODEL))
    ids = [tokenizer(text, verbose=False)["input_ids"] for text in islice(documents(str(BUNDLED_CORPUS)), 40)]
    records = ({"input_ids": [1 + (token - 1 + shift) % 4095 for token in ids_T]} for ids_T in ids)
    assert run(tmp_path, of_text(tmp_path, *records)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("predicts this text no better than by chance" in said) == is_said
