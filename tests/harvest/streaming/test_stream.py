"""Streamed rows, made by real processes, next to the rows of a store of the same text."""

import json
import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import write_model, write_model_with_large_token

from harvest.capture import harvest
from harvest.errors import InputError
from harvest.request import HarvestRequest
from harvest.streaming.order import AHEAD, PARTS
from harvest.streaming.plan import StreamPlan
from harvest.streaming.stream import Stream

SITES = {"layer": (1,), "hook": ("resid_pre", "mlp_out")}
WINDOWS = 12000
SINK = 77  # a token with an embedding that is a thousand times as large
RING_GB = 0.018


@pytest.fixture(scope="module")
def request_(tmp_path_factory) -> HarvestRequest:
    model = write_model("gpt2", tmp_path_factory.mktemp("model"))
    shape = {"seq_len": 10, "n_samples": WINDOWS, "held_out": 0.1, "max_norm_ratio": 0.0, "store_dtype": "float32"}
    streamed = {"stream": True, "sample_rows": 900}
    return HarvestRequest(model_name=str(model), dataset="bundled", **SITES, **shape, **streamed)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def stores(request_, cache):
    return list(harvest(request_, cache).values())


@pytest.fixture(scope="module")
def plan(stores) -> StreamPlan:
    return StreamPlan.of(stores, RING_GB, epochs=1, seed=0)


@pytest.fixture(scope="module")
def rows(plan, tmp_path_factory) -> np.ndarray:
    """All rows of an undisturbed stream, [L, N, D]. Its ring is bounded, and gone at the end."""
    ring, parts = tmp_path_factory.mktemp("streams") / "ring", []
    with Stream(plan, ring) as stream:
        assert stream.order.shards > PARTS + 2 * AHEAD, "the ring is as large as the text"
        for number in range(blocks(stream)):
            parts.append(stream.block(number))
            time.sleep(0.02)
            shards = list(ring.glob("*.safetensors"))
            assert sum(path.stat().st_size for path in shards) <= RING_GB * 1e9
            assert len(shards) <= PARTS + AHEAD
        assert stream.extreme == 0 and stream.busy_seconds > 0
    assert not ring.exists() and not producers()
    return np.concatenate(parts, axis=1)


def stored(request_: HarvestRequest) -> HarvestRequest:
    """The request for a store of all rows that are streamed, with the same documents held out."""
    return replace(request_, stream=False, held_out=request_.held_out_share)


def blocks(stream: Stream) -> int:
    return len(stream.order.starts) - 1


def test_the_store_keeps_a_sample_with_its_text_and_all_held_out_rows(stores, request_, cache):
    whole = list(harvest(stored(request_), cache).values())
    for kept, store in zip(stores, whole, strict=True):
        assert np.array_equal(kept.stream.windows, store.train.windows)
        assert len(kept.train) == 900 and kept.train.n_windows == 100
        chosen_W = np.linspace(0, store.train.n_windows - 1, 100).round().astype(int)
        assert np.array_equal(kept.train.windows, store.train.windows[chosen_W])
        assert np.allclose(kept.train.read(0, 900), store.train[store.train.window_rows(chosen_W)], atol=1e-4)
        assert np.array_equal(kept.held_out.windows, store.held_out.windows)
    assert stores[0].held_out.n_windows == 100, "at most as many held-out rows as training rows are kept"


def test_each_training_row_is_streamed_once_at_the_same_place_of_all_sites(rows, stores, request_, cache):
    whole = list(harvest(stored(request_), cache).values())
    expected_LxNxD = np.stack([store.train.read(0, len(store.train)) for store in whole])
    assert rows.shape == expected_LxNxD.shape
    joined_NxD, expected_NxD = (np.concatenate(list(x_LxNxD), 1) for x_LxNxD in (rows, expected_LxNxD))
    weights_D = np.random.default_rng(0).normal(size=joined_NxD.shape[1])
    found, there = np.sort(joined_NxD @ weights_D), np.sort(expected_NxD @ weights_D)
    assert np.abs(found - there).max() < 1e-4 * np.abs(there).max()
    assert np.abs(np.sort(joined_NxD[:500] @ weights_D) - there[:500]).max() > 0.1, "the rows are in the store's order"


def test_a_killed_producer_is_started_again_and_rows_do_not_depend_on_who_makes_them(rows, plan, tmp_path):
    said = []
    with Stream(plan, tmp_path / "ring", producers=2, device="spread", say=said.append) as stream:
        starts = stream.order.starts
        for number in range(blocks(stream) // 2, blocks(stream)):  # any block can be the first
            if number == blocks(stream) // 2 + 3:
                producers()[0].kill()
            assert np.array_equal(stream.block(number), rows[:, starts[number] : starts[number + 1]])
    assert said == ["the process that runs the language model was killed (SIGKILL), and is started again"]


def test_what_is_left_in_the_ring_is_used_again_if_it_is_whole_and_of_this_stream(rows, plan, tmp_path):
    ring = tmp_path / "ring"
    with pytest.raises(KeyboardInterrupt), Stream(plan, ring) as stream:
        stream.block(PARTS + 2)
        raise KeyboardInterrupt
    whole, damaged, other = stream.ring.path(PARTS), stream.ring.path(PARTS + 1), ring / "another-000001.safetensors"
    other.write_bytes(whole.read_bytes())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = whole.stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt), Stream(plan, ring) as stream:
        starts = stream.order.starts
        assert np.array_equal(stream.block(PARTS + 1), rows[:, starts[PARTS + 1] : starts[PARTS + 2]])
        assert whole.stat().st_mtime_ns == before and not other.exists()
        raise KeyboardInterrupt


def test_rows_of_extreme_norm_are_replaced_by_others_and_counted(tmp_path):
    model = write_model_with_large_token(tmp_path / "model", SINK, 1000)
    rng = np.random.default_rng(0)
    documents_GxT = rng.integers(100, 4000, (3000, 10))
    documents_GxT[::7, 4] = SINK
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in documents_GxT.tolist()))
    shape = {"seq_len": 10, "n_samples": 3000, "held_out": 0.1, "stream": True, "sample_rows": 900}
    stores = list(harvest(HarvestRequest(model_name=str(model), dataset=str(text), **shape), tmp_path).values())
    with Stream(StreamPlan.of(stores, RING_GB, epochs=1, seed=0), tmp_path / "ring") as stream:
        rows_NxD = np.concatenate([stream.block(number)[0] for number in range(blocks(stream))])
    assert stream.extreme == (stores[0].stream.windows == SINK).sum() > 300
    assert len(rows_NxD) == 9 * stores[0].stream.n_windows
    assert np.linalg.norm(rows_NxD, axis=1).max() <= stores[0].manifest["max_norm"]


def test_a_producer_that_cannot_go_on_ends_the_stream_with_its_reason(plan, stores, tmp_path):
    other = write_model("gpt2", tmp_path / "other", bos=True)
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="has other weights than when the training began"):  # noqa: SIM117
        with Stream(replace(plan, model=str(other)), tmp_path / "ring") as stream:
            stream.block(0)
    monitored = []
    continued = r"was killed \(SIGKILL\): see .*producer-0.log .*, and continue with --resume"
    with pytest.raises(InputError, match=continued):  # noqa: SIM117
        with Stream(plan, tmp_path / "ring", say=monitored.append) as stream:
            ended = threading.Event()
            threading.Thread(target=kill_until, args=[ended], daemon=True).start()
            try:
                stream.block(blocks(stream) - 1)
            finally:
                ended.set()
    assert len(monitored) == 2
    assert not producers()


def producers() -> list[psutil.Process]:
    """The producers that this process has started."""
    return [child for child in psutil.Process().children() if "harvest.streaming.producer" in " ".join(child.cmdline())]


def kill_until(ended: threading.Event) -> None:
    while not ended.wait(0.05):
        with suppress(psutil.NoSuchProcess):
            for producer in producers():
                producer.kill()


def test_a_ring_that_is_too_small_is_refused(stores):
    with pytest.raises(InputError, match="--ring-gb 0.0001: the smallest ring for these rows has 0.0[0-9]+ GB"):
        StreamPlan.of(stores, 1e-4, epochs=1, seed=0)
