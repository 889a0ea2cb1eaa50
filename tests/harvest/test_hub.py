"""The real hub clients with a hub on this machine, with a cache of the client, and without a hub."""

import io
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import ROOT
from hub_server import COMMIT, GATED, TORN, broken_hub, files_of, hub, silent_hub

from harvest.request import HOOKS

MODEL = files_of(ROOT / "harvest" / "bundled" / "model")
TEXTS = [f"The rain fell on hill number {i} and the river rose for the whole night." for i in range(200)]
CONFIGS = b"configs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n"


def jsonl(texts: list[str], key: str = "text") -> bytes:
    return "".join(json.dumps({key: text}) + "\n" for text in texts).encode()


def parquet(**columns: list) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


DATASETS = {
    "some-org/texts": {"README.md": b"# texts\n", "data/train.jsonl": jsonl(TEXTS), "data/test.jsonl": jsonl(["no"])},
    "some-org/content": {"train.parquet": parquet(id=[1, 2, 3], content=["one", None, "three"])},
    "some-org/null-first": {
        "train.jsonl": b"".join(
            json.dumps({"url": f"u{i}", "text": f"t{i}" if i >= 300 else None}).encode() + b"\n" for i in range(400)
        )
    },
    "some-org/unclear": {"train.parquet": parquet(question=["a"], answer=["b"])},
    "some-org/several": {
        "README.md": b"---\n" + CONFIGS + b"---\n",
        "a.jsonl": jsonl(["from a"]),
        "b.jsonl": jsonl(["from b"]),
    },
    "some-org/no-train": {"data/test.jsonl": jsonl(["a test"])},
    TORN: {"data/train.jsonl": jsonl(TEXTS)},
}

RESOLVE = """
import dataclasses, json, sys, time
from command_line import ROOT

from harvest.errors import InputError
from harvest.request import HarvestRequest
from harvest.sources import resolve
for request in sys.argv[1:]:
    began = time.monotonic()
    try:
        model, dataset = map(dataclasses.asdict, resolve(HarvestRequest(**json.loads(request))))
        said = {"model": model, "dataset": dataset}
    except InputError as error:
        said = {"error": str(error)}
    print(json.dumps({**said, "seconds": time.monotonic() - began}))
"""

READ = """
import json, sys
from harvest.errors import InputError
from harvest.text.documents import documents
for location in sys.argv[1:]:
    try:
        print(json.dumps({"texts": list(documents(location))}))
    except InputError as error:
        print(json.dumps({"error": str(error)}))
"""

WINDOWS = """
import dataclasses, json, sys
from harvest.request import HarvestRequest
from harvest.sources import resolve
from harvest.text.windows import token_windows
from transformers import AutoTokenizer
request = HarvestRequest(model_name="some-org/tiny", dataset="some-org/texts", n_samples=40, seq_len=5)
model, dataset = resolve(request)
tokenizer = AutoTokenizer.from_pretrained(model.location)
for windows in token_windows(dataset.location, tokenizer, request).values():
    first = tokenizer.decode(windows.tokens_WxT[0])
    print(json.dumps([windows.tokens_WxT.shape, int(windows.documents_W[0]), first]))
"""

BOOT = """
import json, sys
import torch
from harvest.request import HarvestRequest
from harvest.sources import resolve
from transformer_lens.model_bridge import TransformerBridge
for name in sys.argv[1:]:
    model, _ = resolve(HarvestRequest(model_name=name, dataset="bundled"))
    bridge = TransformerBridge.boot_transformers(model.location, device="cpu")
    with torch.inference_mode():
        resid = bridge(torch.tensor([[1, 2, 3]]), stop_at_layer=2)
    print(json.dumps([bridge.cfg.n_layers, list(resid.shape), resid.sum().item()]))
"""


@pytest.fixture(scope="module")
def endpoint():
    with hub({"some-org/tiny": MODEL, "gpt2": MODEL}, DATASETS) as url:
        yield url


def run(script: str, *arguments: str, home: Path, **environment: str) -> list:
    """Run a script in a separate process, because the clients read their environment when they are imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={
            **kept,
            "HF_HOME": str(home),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def resolved(home: Path, environment: dict[str, str], *requests: dict, prelude: str = "") -> list[dict]:
    """The result of each request in one process: {"model", "dataset"} or {"error"}, always within 5 seconds."""
    said = run(prelude + RESOLVE, *map(json.dumps, requests), home=home, **environment)
    assert max(answer["seconds"] for answer in said) < 5
    return said


def cached(home: Path, folder: str, files: dict[str, bytes]) -> None:
    """Write a repository as the hub client caches it: blobs, and links to them from the snapshot of a commit."""
    repository = home / "hub" / folder
    for kind in ("blobs", "refs"):
        (repository / kind).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, (name, content) in enumerate(files.items()):
        blob = repository / "blobs" / str(number)
        blob.write_bytes(content)
        link = repository / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


# Without a hub


HANGING = "import socket, time\nsocket.getaddrinfo = lambda *_, **__: time.sleep(60)\n"
NO_HUB = {
    "accepts and never answers": silent_hub,
    "503": lambda: broken_hub(503),
    "a portal's 200": lambda: broken_hub(200),
    "a proxy's 403": lambda: broken_hub(403),
    "a proxy's 404": lambda: broken_hub(404),
    "refuses": lambda: nullcontext("http://127.0.0.1:9"),
    "unroutable": lambda: nullcontext("http://10.255.255.1"),
    "no such host": lambda: nullcontext("http://hub.invalid"),
}


@pytest.mark.parametrize("how", NO_HUB)
def test_only_defaults_fall_back_if_no_hub_answers(tmp_path, how):
    with NO_HUB[how]() as url:
        named_model = {"model_name": "gpt2-small"}
        named_dataset = {"dataset": "NeelNanda/pile-10k", "model_name": "bundled"}
        said, *refused = resolved(tmp_path, {"HF_ENDPOINT": url}, {}, named_model, named_dataset)
    model, dataset = said["model"], said["dataset"]
    assert (model["asked"], dataset["asked"]) == ("gpt2-small", "NeelNanda/pile-10k")
    assert model["fell_back"] and model["location"] == str(ROOT / "harvest/bundled/model")
    assert dataset["fell_back"] and dataset["location"] == str(ROOT / "harvest/bundled/corpus.jsonl.gz")
    for answer, name in zip(refused, ("--model-name gpt2-small", "--dataset NeelNanda/pile-10k"), strict=True):
        assert answer["error"].startswith(f"{name}: the hub cannot be reached ({url}")
        assert "'bundled'" in answer["error"] and "\n" not in answer["error"]


def test_a_hanging_name_lookup_delays_neither_the_answer_nor_the_exit(tmp_path):
    began = time.monotonic()
    (said,) = resolved(tmp_path, {}, {}, prelude=HANGING)
    assert said["model"]["fell_back"] and said["dataset"]["fell_back"]
    assert time.monotonic() - began < 15


def test_offline_mode_counts_as_no_hub(tmp_path, endpoint):
    offline = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "1"}
    said, named, layer = resolved(tmp_path, offline, {}, {"model_name": "some-org/tiny"}, {"layer": 8})
    assert said["model"]["fell_back"] and said["dataset"]["fell_back"]
    assert "the hub cannot be reached" in named["error"] and "HF_HUB_OFFLINE" in named["error"]
    assert (
        layer["error"]
        == "--layer 8: must be 0 to 3, the layers of the bundled model (the hub cannot be reached for gpt2-small)"
    )


# With a hub


def test_a_hub_that_answers_is_used(tmp_path, endpoint):
    (said,) = resolved(tmp_path, {"HF_ENDPOINT": endpoint}, {"dataset": "some-org/texts", "layer": 3})
    assert said["model"] == {
        "asked": "gpt2-small",
        "location": "gpt2",
        "fell_back": False,
        "out_of_reach": "",
        "n_layers": 4,
        "fingerprint": f"gpt2@{COMMIT}",
        "n_positions": 128,
        "widths": dict.fromkeys(HOOKS, 256) | {"mlp_post": 1024, "one head": 32},
        "published_dtype": "float16",
    }
    assert said["dataset"]["location"] == "some-org/texts" and not said["dataset"]["fell_back"]
    assert said["dataset"]["fingerprint"] == f"some-org/texts@{COMMIT}"


REFUSALS = [
    ({"model_name": "some-org/nothing"}, ["--model-name some-org/nothing: the hub", "check the name", "HF_TOKEN"]),
    ({"dataset": "some-org/nothing"}, ["--dataset some-org/nothing: the hub", "check the name", "HF_TOKEN"]),
    ({}, ["--dataset NeelNanda/pile-10k: the hub", "check the name"]),  # a hub without the default data set
    ({"model_name": GATED}, [f"--model-name {GATED}: access is gated: accept the terms", f"/{GATED}"]),
    ({"dataset": GATED}, [f"--dataset {GATED}: access is gated", f"/datasets/{GATED}", "HF_TOKEN"]),
    ({"dataset": "some-org/texts", "layer": 4}, ["--layer 4: must be 0 to 3, the layers of gpt2"]),
    ({"dataset": "some-org/texts", "seq_len": 129}, ["--seq-len 129: must be at most 128, the context of gpt2"]),
]


@pytest.mark.parametrize("token", [{}, {"HF_TOKEN": "hf_x"}])
def test_refusals_of_a_hub_are_distinguished(tmp_path, endpoint, token):
    said = resolved(tmp_path, {"HF_ENDPOINT": endpoint, **token}, *(request for request, _ in REFUSALS))
    for answer, (_, parts) in zip(said, REFUSALS, strict=True):
        assert all(part in answer["error"] for part in parts), answer
        assert "cannot be reached" not in answer["error"] and "\n" not in answer["error"]


def test_data_sets_of_the_hub(tmp_path, endpoint):
    names = ["texts", "content", "null-first", "several:b", "unclear", "several", "no-train", "torn"]
    locations = [f"some-org/{name}" for name in names]
    said = dict(zip(names, run(READ, *locations, home=tmp_path, HF_ENDPOINT=endpoint), strict=True))
    assert said["texts"] == {"texts": TEXTS}
    assert said["content"] == {"texts": ["one", "", "three"]}
    assert said["null-first"] == {"texts": [""] * 300 + [f"t{i}" for i in range(300, 400)]}
    assert said["several:b"] == {"texts": ["from b"]}
    assert "question, answer" in said["unclear"]["error"]
    assert "some-org/several:CONFIG" in said["several"]["error"]
    assert "train" in said["no-train"]["error"] and "test" in said["no-train"]["error"]
    assert "cannot be read from the hub" in said["torn"]["error"]
    assert all("\n" not in answer.get("error", "") for answer in said.values())


def test_a_data_set_streams_from_the_hub_into_windows(tmp_path, endpoint):
    train, held_out = run(WINDOWS, home=tmp_path, HF_ENDPOINT=endpoint)
    assert train[0] == [36, 5] and held_out[0] == [4, 5]
    for _, document, first in (train, held_out):
        assert TEXTS[document].startswith(first)


@pytest.mark.slow
def test_models_load_from_the_hub_and_then_from_the_cache(tmp_path, endpoint):
    names = ["gpt2-small", "some-org/tiny"]
    booted = run(BOOT, *names, home=tmp_path, HF_ENDPOINT=endpoint)
    assert booted[0] == booted[1] and booted[0][:2] == [4, [1, 3, 256]]
    assert run(BOOT, *names, home=tmp_path, HF_HUB_OFFLINE="1") == booted


# With a cache but no hub


@pytest.mark.slow
def test_a_model_loads_from_an_offline_cache(tmp_path):
    cached(tmp_path, "models--gpt2", MODEL)
    ((n_layers, shape, _),) = run(BOOT, "gpt2-small", home=tmp_path, HF_HUB_OFFLINE="1")
    assert n_layers == 4 and shape == [1, 3, 256]


def test_a_cached_model_is_used_without_asking_the_hub(tmp_path):
    cached(tmp_path, "models--gpt2", MODEL)
    with silent_hub() as url:
        elsewhere = {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(tmp_path / "hub")}
        (said,) = resolved(tmp_path / "other", elsewhere, {"dataset": "bundled"})
    assert said["seconds"] < 2
    assert said["model"]["location"] == str(tmp_path / "hub/models--gpt2/snapshots" / COMMIT)
    assert said["model"]["fingerprint"] == f"gpt2@{COMMIT}" and not said["model"]["fell_back"]


def test_a_model_without_cached_weights_is_unavailable_offline(tmp_path):
    cached(tmp_path, "models--gpt2", {name: MODEL[name] for name in ("config.json", "tokenizer.json")})
    default, named = resolved(tmp_path, {"HF_HUB_OFFLINE": "1"}, {}, {"model_name": "gpt2"})
    assert default["model"]["fell_back"] and "the hub cannot be reached" in named["error"]


def test_a_cached_data_set_is_read_without_a_hub(tmp_path):
    cached(tmp_path, "datasets--some-org--texts", DATASETS["some-org/texts"])
    cached(tmp_path, "datasets--some-org--several", DATASETS["some-org/several"])
    cached(tmp_path, "datasets--some-org--bare", {"README.md": b"# what streaming leaves behind\n"})
    offline = {"HF_HUB_OFFLINE": "1"}
    names = ("some-org/texts", "some-org/several:b", "some-org/bare")
    *had, bare = resolved(tmp_path, offline, *({"dataset": name} for name in names))
    assert [answer["dataset"]["fingerprint"] for answer in had] == [f"{name}@{COMMIT}" for name in names[:2]]
    texts, several = run(READ, *(answer["dataset"]["location"] for answer in had), home=tmp_path, **offline)
    assert texts == {"texts": TEXTS} and several == {"texts": ["from b"]}
    assert "the hub cannot be reached" in bare["error"]
