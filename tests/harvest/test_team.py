"""A harvest by several processes: its stores are those of one process, also after one of them has ended early."""

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from teams import start_team, team_of
from tiny_models import write_model_with_large_token

from harvest.capture import harvest
from harvest.errors import InputError
from harvest.request import HarvestRequest

ONE_BATCH = 1  # bytes of a shard, which has at least one batch
LARGE = 77  # a token whose activations do not fit float16
BUNDLED = {"model_name": "bundled", "dataset": "bundled"}
SMALL = {**BUNDLED, "layer": 2, "n_samples": 801}
REQUESTS = {
    "one site": SMALL,
    "several sites": {**BUNDLED, "layer": [1, 3], "hook": ["resid_pre", "mlp_out"], "n_samples": 301},
    "int8": {**BUNDLED, "layer": 2, "n_samples": 301, "store_dtype": "int8"},
    "streamed": {**BUNDLED, "layer": 1, "n_samples": 901, "stream": True, "sample_rows": 8000},
    "generated": {**BUNDLED, "layer": 1, "n_samples": 411, "seq_len": 10, "generate": 3},
    "one shard of each split": {**BUNDLED, "layer": 1, "n_samples": 21},
}
HARVEST = """
import json, os, resource, signal, sys
from pathlib import Path
from harvest.capture import harvest
from harvest.errors import InputError
from harvest.request import HarvestRequest
from teams import team_of

def on_progress(phase, done, total):
    if phase == "harvest":
        harvested[-1] = done
        if done > 4000:
            exec(sys.argv[4])

team, harvested = team_of(*map(int, sys.argv[1].split(","))), []
try:
    for request in json.loads(sys.argv[2]):
        harvested.append(0)
        harvest(HarvestRequest(**request), Path(sys.argv[3]), on_progress, shard_bytes=1, team=team)
except InputError as error:
    sys.exit(f"error: {error}")
print(json.dumps(harvested))
"""
KILL, FILL_THE_DISK = "os.kill(os.getpid(), signal.SIGKILL)", "resource.setrlimit(resource.RLIMIT_FSIZE, (99_999, -1))"


@pytest.fixture(scope="module")
def requests(tmp_path_factory) -> dict[str, dict]:
    """REQUESTS, and one of documents of different lengths, whose last ones have activations that do not fit float16."""
    folder = tmp_path_factory.mktemp("large")
    model = write_model_with_large_token(folder / "model", LARGE, 1e7)
    rng, documents = np.random.default_rng(0), []
    for number in range(900):
        documents.append(rng.integers(100, 4000, rng.integers(3, 40)).tolist())
        documents[-1][1] = LARGE if number > 300 else 99
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in documents))
    varied = {"model_name": str(model), "dataset": str(path), "layer": 0, "n_samples": 1001, "seq_len": 9}
    return REQUESTS | {"documents of different lengths": {**varied, "pack": True, "max_norm_ratio": 0}}


@pytest.fixture(scope="module")
def harvested(requests, tmp_path_factory) -> tuple[Path, list[list[int]]]:
    """The cache of two processes, and the tokens that each ran for each request; the first request is repeated."""
    cache = tmp_path_factory.mktemp("two")
    every = json.dumps([*requests.values(), SMALL])
    ended = [finished(process) for process in start_team(HARVEST, [[every, str(cache), ""]] * 2)]
    assert [status for status, _, _ in ended] == [0, 0], ended
    return cache, [json.loads(out) for _, out, _ in ended]


@pytest.fixture(scope="module")
def alone(requests, tmp_path_factory) -> Path:
    """The cache of a process of its own: UMAP may have changed the threads, and so the last bits, of this one."""
    cache = tmp_path_factory.mktemp("alone")
    harvested_alone([*requests.values()], cache)
    return cache


def harvested_alone(requests: list[dict], cache: Path) -> None:
    (process,) = start_team(HARVEST, [[json.dumps(requests), str(cache), ""]])
    status, _, err = finished(process)
    assert status == 0, err


def finished(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", [*REQUESTS, "documents of different lengths"])
def test_the_stores_of_two_processes_are_those_of_one_byte_for_byte(harvested, alone, requests, name):
    cache, tokens = harvested
    stores = harvest(HarvestRequest(**requests[name]), alone, shard_bytes=ONE_BATCH)  # which are there
    for store in stores.values():
        of_one, shared = files_of(store.directory), files_of(cache / "activations" / store.directory.name)
        assert of_one.keys() == shared.keys()
        assert [path for path in of_one if of_one[path] != shared[path]] == []
        assert not {".tmp", ".json"} & {Path(path).suffix for path in of_one if path != "manifest.json"}
    own = [of_process[[*requests].index(name)] for of_process in tokens]
    windows = store.train.n_windows + store.held_out.n_windows
    assert sum(own) == windows * store.manifest["seq_len"] and min(own) > 0  # each window was run by one of them


def test_documents_of_different_lengths_have_shards_of_two_formats(harvested, requests):
    request = HarvestRequest(**requests["documents of different lengths"])
    (store,) = harvest(request, harvested[0], shard_bytes=ONE_BATCH).values()
    kinds = {np.load(path).dtype for path in store.directory.glob("*/rows-*")}
    assert kinds == {np.dtype("float16"), np.dtype("float32")} and store.manifest["dtype"] == "float32"
    assert not store.train.keeps_all and (store.train.n_windows + store.held_out.n_windows) % 2


def test_a_store_that_is_there_is_opened_by_all(harvested):
    _, tokens = harvested
    assert [of_process[-1] for of_process in tokens] == [0, 0]


@pytest.mark.parametrize(
    ("failing", "event", "status", "says"),
    [
        pytest.param(0, KILL, -signal.SIGKILL, "", marks=pytest.mark.slow),
        (1, KILL, -signal.SIGKILL, ""),
        (1, FILL_THE_DISK, 1, "error: the disk is full"),
    ],
    ids=["process 0 is killed", "process 1 is killed", "the disk of process 1 is full"],
)
def test_if_one_process_ends_the_other_says_so_and_one_process_can_go_on(
    harvested, tmp_path, failing, event, status, says
):
    events = [event if index == failing else "" for index in range(2)]
    processes = start_team(HARVEST, [[json.dumps([SMALL]), str(tmp_path), event] for event in events])
    ended = [finished(process) for process in processes]
    code, _, err = ended[failing]
    assert code == status and err.startswith(says) and err.count("\n") == bool(says)
    code, _, err = ended[1 - failing]
    assert code == 1 and err.startswith("error: another process has ended") and err.count("\n") == 1
    (unfinished,) = (path for path in (tmp_path / "activations").iterdir() if path.is_dir())
    kept = {path: path.stat().st_mtime_ns for path in unfinished.glob("*/shard-*")}
    assert 4 < len(kept) < 8 and not (unfinished / "manifest.json").exists()
    harvested_alone([SMALL], tmp_path)
    (store,) = harvest(HarvestRequest(**SMALL), tmp_path, shard_bytes=ONE_BATCH).values()
    assert files_of(store.directory) == files_of(harvested[0] / "activations" / store.directory.name)


def troubles(*processes: tuple[dict, Path]) -> list[str]:
    """What each of two processes says that harvest a request into a cache. They are threads, which start fast."""
    sockets = socket.socketpair()

    def trouble(index: int) -> str:
        request, cache = processes[index]
        with pytest.raises(InputError) as caught:
            harvest(HarvestRequest(**request), cache, team=team_of(index, 2, os.dup(sockets[index].fileno())))
        sockets[index].shutdown(socket.SHUT_RDWR)
        return str(caught.value)

    with ThreadPoolExecutor() as threads:
        return list(threads.map(trouble, range(2)))


def test_processes_with_other_settings_are_refused_by_all(tmp_path):
    both = troubles((SMALL, tmp_path), (SMALL | {"n_samples": 799}, tmp_path))
    assert both[0] == both[1]
    assert both[0].startswith("processes 0 and 1 differ in the stores that they need")


def test_processes_without_a_shared_cache_are_refused(tmp_path):
    first, second = troubles((SMALL, tmp_path / "a"), (SMALL, tmp_path / "b"))
    assert f"--cache-dir {tmp_path / 'b'}: process 1 of the harvest does not find the files of process 0" in second
    assert "another process has ended" in first
