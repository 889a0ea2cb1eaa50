"""Snapshots of dictionaries during training: their steps and their content."""

import numpy as np
import pytest
from command_line import THREE_KINDS, shared_cache, typed
from hypothesis import given
from hypothesis import strategies as st

from analysis.runs.finished import FinishedRun
from harvest.request import Site
from sae_jax.calibration import calibration_sample
from sae_jax.formats import load_dictionary
from sae_jax.training.snapshots import read_snapshots, snapshot_steps


@given(st.integers(1, 10**6), st.integers(1, 256), st.integers(1, 30))
def test_steps_are_ends_of_blocks_and_the_last_one_is_among_them(total, block, count):
    steps = snapshot_steps(total, block, count)
    assert {0, total} <= steps and len(steps) <= count + 1
    assert all(step == total or step % block == 0 for step in steps)


def test_steps_are_evenly_spaced_in_their_logarithm():
    assert sorted(snapshot_steps(1000, 1, 4)) == [0, 1, 10, 100, 1000]
    assert snapshot_steps(1000, 1, 0) == set()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cache = shared_cache(tmp_path_factory)
    run = tmp_path_factory.mktemp("runs") / "kept"
    done = typed(*THREE_KINDS, "--epochs", "3", "--snapshots", "3", "--no-fit-decoder", "--run-dir", run, cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    finished = FinishedRun.open(run)
    return run, finished.store(Site(0, "resid_pre"), cache)


def test_without_a_fit_the_last_snapshot_is_the_exported_dictionary(run):
    run, store = run
    rows_NxD = calibration_sample(store.held_out).astype(np.float32)
    for path in (run / "members").iterdir():
        kept = read_snapshots(run, path.name)
        dictionary = load_dictionary(path)
        assert 2 <= len(kept) <= 4
        first, last = kept[0], kept[max(kept)]
        W_dec_FxD = dictionary.tensors["W_dec"]
        np.testing.assert_allclose(last.direction * last.norm[:, None], W_dec_FxD, atol=2e-3 * np.abs(W_dec_FxD).max())
        fires_F = (np.asarray(dictionary.sae.encode(rows_NxD)) != 0).mean(0)
        np.testing.assert_allclose(last.density, fires_F, atol=1e-3)
        assert np.abs(first.direction - last.direction).max() > 0.01, "training has moved them"
