"""Members over devices: each is somewhere once, the load is even, and what is learned does not depend on it."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from populations import placed
from rows import sparse_rows

from sae_jax.config import TrainConfig
from sae_jax.placement import dealt
from sae_jax.step import make_train_block

D, BATCH = 24, 32


def group(members: int, hidden_dim: int = 64) -> SimpleNamespace:
    return SimpleNamespace(members=range(members), signature=SimpleNamespace(hidden_dim=hidden_dim))


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), devices=st.integers(1, 9))
def test_every_member_has_one_place_and_the_load_is_even(counts, devices):
    members_Q = dealt([group(n) for n in counts], devices)
    shares_GxN = np.array([(of.reshape(devices, -1) >= 0).sum(1) for of in members_Q])
    for of, n in zip(members_Q, counts, strict=True):
        assert of[of >= 0].tolist() == list(range(n)), "in order, so that gathering needs no other"
    assert np.ptp(shares_GxN, axis=1).max() <= 1 and np.ptp(shares_GxN.sum(0)) <= 1


def test_a_wide_member_has_its_device_to_itself():
    first, wide, *others = (of.argmax() for of in dealt([group(1, f) for f in (16, 4096, 16, 16)], 2))
    assert wide != first and set(others) == {first}


@pytest.fixture(scope="module")
def blocks_LxSxBxD():
    rng = np.random.default_rng(0)
    rows = sparse_rows(rng, rng.standard_normal((64, D)), 120 * BATCH).astype(np.float32)
    return (rows - rows.mean(0)).reshape(3, 1, 40, BATCH, D) / rows.std(0)


def learned(blocks_LxSxBxD, devices: int, side_by_side: int, config: TrainConfig):
    """(states, the last metrics) of all members, in order."""
    x_NxD = blocks_LxSxBxD[0][0].reshape(-1, D)[:512]
    placement, states, hypers, groups = placed(config, 120, x_NxD, devices)
    train_block = make_train_block(groups, side_by_side, placement.mesh)
    nothing = placement.everywhere(np.zeros((1, 0, D), np.float32))
    for block_LxSxBxD in blocks_LxSxBxD:
        states, metrics = train_block(states, hypers, placement.everywhere(block_LxSxBxD), nothing)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(states)} == {devices}
    return placement.gather(states), placement.gather(metrics)


@pytest.mark.parametrize("side_by_side", [1, 8])
def test_on_two_devices_members_learn_what_they_learn_on_one(blocks_LxSxBxD, side_by_side):
    """Five members of a kind leave one place empty; one member of each kind fails at once."""
    config = TrainConfig(
        ("relu", "topk"), 48, lr=(1e-3, 5e-4, 3e-4, 1e-4, 1e30), k=6, target_l0=6.0, batch_size=BATCH, warmup=0.0
    )
    (one, one_metrics), (two, two_metrics) = (learned(blocks_LxSxBxD, n, side_by_side, config) for n in (1, 2))
    exact = side_by_side == 1  # a vmap over three members sums in another order than one over five
    for a, b in zip(jax.tree.leaves((one, one_metrics)), jax.tree.leaves((two, two_metrics)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-4)
    for state, metrics in zip(two, two_metrics, strict=True):
        assert (state.failed[:4] == -1).all() and 0 <= state.failed[4] < 120
        assert np.isfinite(metrics["loss"][:4]).all() and np.isnan(metrics["loss"][4]).all()
        assert len({params.tobytes() for params in state.params["W_dec"]}) == 5
