"""Rows of extreme norm: which are left out, next to what is written here by hand, and training without them."""

import json

import numpy as np
import pytest
import torch
from finished_runs import asked_of
from tiny_models import write_model_with_large_token

import sae_jax
from harvest.capture import harvest
from harvest.errors import InputError
from harvest.interventions.loss_recovered import losses
from harvest.model.language_model import LanguageModel
from harvest.request import HarvestRequest, Site
from sae_jax.config import TrainConfig
from sae_jax.run_directory import RunDirectory
from sae_jax.training.batches import Feed
from sae_jax.training.loop import train

SINK = 77  # a token with an embedding that is a thousand times as large
EMBEDDED, ADDED = Site(0, "resid_pre"), Site(0, "mlp_out")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """(model, text): documents of ten tokens, of which those with an even number have the sink in fifth place."""
    folder = tmp_path_factory.mktemp("sinks")
    model = write_model_with_large_token(folder / "model", SINK, 1000)
    rng = np.random.default_rng(0)
    documents_GxT = rng.permutation(np.arange(100, 4000))[:600].reshape(60, 10)  # no token twice
    documents_GxT[::2, 4] = SINK
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in documents_GxT.tolist()))
    return str(model), str(path)


@pytest.fixture(scope="module")
def stores(text, tmp_path_factory):
    said: list[str] = []
    stores = harvest(asked(text), tmp_path_factory.mktemp("cache"), say=said.append)
    return stores, said


def asked(text, **settings) -> HarvestRequest:
    model, path = text
    shape = {"layer": 0, "hook": ("resid_pre", "mlp_out"), "seq_len": 10, "n_samples": 60, "held_out": 0.3}
    return HarvestRequest(model_name=model, dataset=path, **shape, **settings)


def test_rows_of_extreme_norm_are_left_out_counted_and_said(stores):
    by_site, said = stores
    splits = by_site[EMBEDDED].train, by_site[EMBEDDED].held_out
    for split in splits:
        np.testing.assert_array_equal(split.kept_positions(0, 60), split.windows[:, 1:] != SINK)
        assert np.linalg.norm(split.read(0, len(split)).astype(float), axis=1).max() < 10
    assert by_site[ADDED].train.keeps_all and by_site[ADDED].held_out.keeps_all
    sinks = sum(int((split.windows == SINK).sum()) for split in splits)
    share = sinks / sum(split.windows[:, 1:].size for split in splits)
    line = f"{sinks} rows ({share:.3%}) are left out at {EMBEDDED.hook_name}: their norm is over"
    assert sinks > 20 and any(line in said_line for said_line in said)
    assert not any(f"left out at {ADDED.hook_name}" in said_line for said_line in said)


def test_all_rows_are_kept_on_request(text, tmp_path):
    store = harvest(asked(text, max_norm_ratio=0), tmp_path)[EMBEDDED]
    assert store.train.keeps_all and np.abs(store.train.read(0, len(store.train)).astype(float)).max() > 100
    with pytest.raises(InputError, match="--max-norm-ratio 1: must be 0, or a number over 1"):
        asked(text, max_norm_ratio=1)


def test_sites_are_read_at_the_same_places(stores):
    by_site, _ = stores
    splits = [by_site[site].train for site in (EMBEDDED, ADDED)]
    feed = Feed(splits, batch_size=16, epochs=1, seed=0)
    assert feed.rows == len(splits[0]) < len(splits[1])
    places = []
    for split, read in zip(splits, feed.splits, strict=True):
        all_NxD = split.read(0, len(split))
        found = [np.flatnonzero((all_NxD == row_D).all(1))[0] for row_D in read.read(3, feed.rows)]
        np.testing.assert_array_equal(read[3], all_NxD[found[0]])
        places.append(np.stack(split.places(np.array(found))))
    np.testing.assert_array_equal(*places)


@pytest.fixture(scope="module")
def run(stores, text, tmp_path_factory):
    config = TrainConfig(activation=("topk", "jump_relu"), k=4, target_l0=4, hidden_dim=16, batch_size=32, epochs=20)
    run = RunDirectory(tmp_path_factory.mktemp("run") / "run", asked_of(asked(text), config))
    results = train(config, list(stores[0].values()), run)
    assert [member["failed"] for member in results["members"]] == [None] * 4
    return run


def test_a_dictionary_leaves_rows_of_extreme_norm_as_they_are(run, stores, text):
    split = stores[0][EMBEDDED].train
    x_WxTxD = LanguageModel.load(text[0]).activations(split.windows, [EMBEDDED])[EMBEDDED]
    is_sink_WxT = split.windows == SINK
    for member in sorted((run.path / "members").glob("*")):
        sae = sae_jax.load(member)
        if sae.hook_name != EMBEDDED.hook_name:
            continue
        f_WxTxF, reconstructed_WxTxD = sae.encode(x_WxTxD), sae(x_WxTxD)
        assert not f_WxTxF[is_sink_WxT].any() and f_WxTxF[~is_sink_WxT].any()
        np.testing.assert_array_equal(reconstructed_WxTxD[is_sink_WxT], x_WxTxD[is_sink_WxT])
        assert (reconstructed_WxTxD[~is_sink_WxT] != x_WxTxD[~is_sink_WxT]).any()
        module = sae.to_torch()
        np.testing.assert_allclose(module.encode(torch.from_numpy(x_WxTxD)).detach(), f_WxTxF, atol=1e-4)
        np.testing.assert_allclose(module(torch.from_numpy(x_WxTxD)).detach(), reconstructed_WxTxD, atol=1e-3)


def test_extreme_activations_of_the_model_are_not_replaced(stores, text):
    split, largest = stores[0][EMBEDDED].held_out, list[float]()

    def keep(x_NxD: np.ndarray) -> np.ndarray:
        largest.append(np.linalg.norm(x_NxD, axis=1).max())
        return x_NxD

    kept_WxP = split.kept_positions(0, split.n_windows)
    losses(LanguageModel.load(text[0]), split.windows, EMBEDDED, {"itself": keep}, 1, kept_WxP)
    assert max(largest) < 10
