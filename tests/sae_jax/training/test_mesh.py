"""Distribution of members over devices: each has one place, the load is even, and the results do not depend on it."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command_line import ROOT
from hypothesis import given
from hypothesis import strategies as st
from populations import placed
from rows import sparse_rows

from sae_jax.config import TrainConfig
from sae_jax.training.axes import Axes
from sae_jax.training.programs import make_train_block
from sae_jax.training.shares import members_at, shares_of

D, BATCH = 24, 32


def group(members: int, hidden_dim: int = 64) -> SimpleNamespace:
    return SimpleNamespace(members=range(members), signature=SimpleNamespace(hidden_dim=hidden_dim, d_model=768))


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), devices=st.integers(1, 9))
def test_every_member_has_one_slot_and_the_load_is_even(counts, devices):
    groups, load_N, places = [group(n) for n in counts], np.zeros(devices), 0
    for share, n in zip(shares_of(groups, devices, most_empty=0), counts, strict=True):
        members_Q = members_at(share)
        assert members_Q[members_Q >= 0].tolist() == list(range(n)), "in order, so that gathering needs no other"
        load_N[list(share.positions)] += share.counts
        places += members_Q.size
    assert load_N.max() == np.ceil(sum(counts) / devices), "nobody could finish earlier"
    assert places <= 1.5 * sum(counts)


def test_a_wide_member_has_its_device_to_itself():
    first, wide, *others = (
        share.positions for share in shares_of([group(1, f) for f in (16, 4096, 16, 16)], 2, most_empty=0)
    )
    assert wide != first and set(others) == {first}


def test_small_populations_are_one_program_and_large_ones_are_spread():
    kinds = shares_of([group(1, 256) for _ in range(3)], 2)
    assert [share.positions for share in kinds] == [(0, 1)] * 3 and [sum(share.counts) for share in kinds] == [1] * 3
    assert sorted(np.sum([share.counts for share in kinds], 0)) == [1, 2]
    assert {share.positions for share in shares_of([group(1, 65_536) for _ in range(2)], 2)} == {(0,), (1,)}


def test_eight_widths_on_eight_devices_have_one_device_each():
    shares = shares_of([group(1, 768 * 2**i) for i in range(8)], 8)
    assert sorted(share.positions for share in shares) == [(device,) for device in range(8)]


def test_each_device_holds_its_share_and_results_do_not_depend_on_devices(tmp_path):
    """Four members of different width are trained in a process with four devices and in one with a single device."""
    learned = {}
    for devices in (1, 4):
        process = subprocess.run(
            [sys.executable, "-c", FOUR_WIDTHS, str(tmp_path / f"{devices}.npz")],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert process.returncode == 0, process.stderr
        learned[devices] = np.load(tmp_path / f"{devices}.npz")
    bytes_N, alone = learned[4]["bytes_N"], learned[1]["bytes_N"]
    assert bytes_N.sum() == alone.sum(), "nothing is held twice"
    assert bytes_N.max() == learned[4]["widest"]
    for name in learned[1].files:
        if name.startswith("leaf"):
            np.testing.assert_array_equal(learned[4][name], learned[1][name])


TESTS = ROOT / "tests"
FOUR_WIDTHS = """
import sys
import jax, numpy as np
from populations import placed
import sae_jax.training.shares
from sae_jax.config import TrainConfig
from sae_jax.training.programs import make_train_block

sae_jax.training.shares.ONE_PROGRAM_BYTES = 0  # as if they were wide
x_NxD = np.random.default_rng(0).standard_normal((320, 24)).astype(np.float32)
config = TrainConfig("relu", tuple(16 + 8 * i for i in range(4)), target_l0=6.0, batch_size=32, warmup=0.0)
placement, states, hypers, groups = placed(config, 40, x_NxD)
train_block, rows = make_train_block(groups, 2, placement), placement.rows(x_NxD.reshape(1, 10, 32, 24))
for _ in range(2):
    states, _ = train_block(states, hypers, rows, placement.everywhere(np.zeros((1, 0, 24), np.float32)))
held = {device: 0 for device in jax.devices()}
for shard in (shard for leaf in jax.tree.leaves(states) for shard in leaf.addressable_shards):
    held[shard.device] += shard.data.nbytes
leaves = jax.tree.leaves(placement.gather(states))
widest = sum(leaf.nbytes for leaf in jax.tree.leaves(placement.gather_group(3, states[3])))
kept = {f"leaf{number}": leaf for number, leaf in enumerate(leaves)}
np.savez(sys.argv[1], bytes_N=list(held.values()), widest=widest, **kept)
"""


@pytest.fixture(scope="module")
def blocks_LxSxBxD():
    rng = np.random.default_rng(0)
    rows = sparse_rows(rng, rng.standard_normal((64, D)), 120 * BATCH).astype(np.float32)
    return (rows - rows.mean(0)).reshape(3, 1, 40, BATCH, D) / rows.std(0)


def learned(blocks_LxSxBxD, devices: int, side_by_side: int, config: TrainConfig):
    """(states, final metrics) of all members in order."""
    x_NxD = blocks_LxSxBxD[0][0].reshape(-1, D)[:512]
    placement, states, hypers, groups = placed(config, 120, x_NxD, Axes(members=devices))
    train_block = make_train_block(groups, side_by_side, placement)
    nothing = placement.everywhere(np.zeros((1, 0, D), np.float32))
    for block_LxSxBxD in blocks_LxSxBxD:
        states, metrics = train_block(states, hypers, placement.rows(block_LxSxBxD), nothing)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(states)} == {devices}
    return placement.gather(states), placement.gather(metrics)


@pytest.mark.parametrize("side_by_side", [1, 8])
def test_members_train_the_same_on_two_devices_as_on_one(blocks_LxSxBxD, side_by_side):
    """Five members of a kind leave a slot empty. One member of each kind fails at the first step."""
    config = TrainConfig(
        ("relu", "topk"), 48, lr=(1e-3, 5e-4, 3e-4, 1e-4, 1e30), k=6, target_l0=6.0, batch_size=BATCH, warmup=0.0
    )
    (one, one_metrics), (two, two_metrics) = (learned(blocks_LxSxBxD, n, side_by_side, config) for n in (1, 2))
    exact = side_by_side == 1  # vmaps over three and over five members add in different orders
    for a, b in zip(jax.tree.leaves((one, one_metrics)), jax.tree.leaves((two, two_metrics)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-4)
    for state, metrics in zip(two, two_metrics, strict=True):
        assert (state.failed[:4] == -1).all() and 0 <= state.failed[4] < 120
        assert np.isfinite(metrics["loss"][:4]).all() and np.isnan(metrics["loss"][4]).all()
        assert len({params.tobytes() for params in state.params["W_dec"]}) == 5
