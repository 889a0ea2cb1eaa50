"""TransformerActivationDataset in a torch DataLoader."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ROOT
from torch.utils.data import DataLoader

from harvest import TransformerActivationDataset
from harvest.errors import InputError


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def dataset(cache_dir) -> TransformerActivationDataset:
    return bundled(cache_dir)


def bundled(cache_dir: Path, **arguments) -> TransformerActivationDataset:
    wanted = {"model_name": "bundled", "layer": 1, "n_samples": 100, "dataset": "bundled", **arguments}
    return TransformerActivationDataset(**wanted, cache_dir=cache_dir)


def test_an_item_is_one_activation_row(dataset):
    assert len(dataset) == 90 * 19
    item = dataset[3]
    assert list(item) == ["activations", "pixel_values"]
    assert item["activations"].dtype == torch.float32 and item["activations"].shape == (256,)
    for row_D in item.values():
        np.testing.assert_array_equal(row_D, dataset.store.train.read(3, 4)[0].astype(np.float32))


def test_the_rows_may_be_those_of_a_store(dataset, cache_dir):
    held_out = TransformerActivationDataset(dataset.store, split="held_out")
    assert len(held_out) == 10 * 19
    np.testing.assert_array_equal(held_out[5]["activations"], dataset.store.held_out[5].astype(np.float32))
    with pytest.raises(InputError, match="leave layer out, or the store"):
        TransformerActivationDataset(dataset.store, layer=1)
    with pytest.raises(InputError, match="leave cache_dir out, or the store"):
        TransformerActivationDataset(dataset.store, cache_dir=cache_dir)


def test_a_store_describes_itself(dataset):
    first, second, third = repr(dataset.store).splitlines()
    assert first == "ActivationStore of blocks.1.hook_resid_pre of bundled, 256 wide"
    assert second == "  1,710 training rows and 190 held-out ones, from windows of 20 tokens of bundled"
    assert third == f"  in {dataset.store.directory}"
    assert repr(dataset.store.held_out).startswith("Split(held_out: 190 rows of 10 windows, in ")


@pytest.mark.parametrize("several", [{"layer": (1, 2)}, {"hook": ("resid_pre", "mlp_out")}], ids=["layers", "hooks"])
def test_a_request_for_several_sites_is_refused(cache_dir, several):
    with pytest.raises(InputError, match="the rows of one site, but several are given: give one layer and one hook"):
        bundled(cache_dir, **several)


def test_a_batch_equals_its_items(dataset):
    rows = [5, 1700, 5, 0]
    for item, row in zip(dataset.__getitems__(rows), rows, strict=True):
        assert torch.equal(item["activations"], dataset[row]["activations"])


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_worker_processes_give_every_row_in_order(dataset, start_method):
    loader = DataLoader(dataset, batch_size=64, num_workers=2, multiprocessing_context=start_method)
    batches = [batch["pixel_values"] for batch in loader]
    assert all(batch.shape == (64, 256) for batch in batches[:-1])
    everything = torch.from_numpy(dataset.store.train.read(0, len(dataset))).float()
    assert torch.equal(torch.cat(batches), everything)


def test_a_shuffled_epoch_has_each_row_once(dataset):
    rows = torch.cat([batch["pixel_values"] for batch in DataLoader(dataset, batch_size=100, shuffle=True)])
    everything = torch.from_numpy(dataset.store.train.read(0, len(dataset))).float()
    assert not torch.equal(rows, everything)
    torch.testing.assert_close(rows.double().sum(0), everything.double().sum(0))


def test_the_held_out_split_and_an_unknown_split(dataset, cache_dir):
    held_out = bundled(cache_dir, split="held_out")
    assert held_out.store.directory == dataset.store.directory and len(held_out) == 10 * 19
    with pytest.raises(InputError, match="split 'test'.*train, held_out"):
        bundled(cache_dir, split="test")


def test_an_unavailable_named_model_is_an_error(cache_dir):
    with pytest.raises(InputError, match="nowhere"):
        bundled(cache_dir, model_name="./nowhere")


def test_the_data_set_is_pickled_without_its_rows(dataset):
    _ = dataset[0], dataset.rows.windows
    assert len(pickle.dumps(dataset)) < 100_000


def test_importing_the_package_does_not_load_torch():
    code = (
        "import sys, harvest, harvest.capture; assert 'torch' not in sys.modules; harvest.TransformerActivationDataset"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
