"""A population in one program: it compiles once, members equal those trained alone, dead features are revived."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from populations import one_member, prepare
from rows import sparse_rows

from sae_jax.config import TrainConfig
from sae_jax.training.population import Rows, start_member
from sae_jax.training.programs import make_train_block
from sae_jax.training.step import look_for_dead

D, BATCH = 24, 32
NOTHING = jnp.zeros((1, 0, D))  # no calibration rows


@pytest.fixture(scope="module")
def blocks_SxBxD():
    rng = np.random.default_rng(0)
    rows = sparse_rows(rng, rng.standard_normal((64, D)), 200 * BATCH).astype(np.float32)
    return rows.reshape(4, 50, BATCH, D)


def run(config: TrainConfig, blocks):
    flat_NxD = blocks[0].reshape(-1, D)
    rows = Rows(0, flat_NxD.mean(0), flat_NxD.std(0), np.ones(flat_NxD.shape[1]))
    x_NxD = (flat_NxD[:512] - rows.shift_D) / rows.scale_D
    groups, states, hypers = prepare(config, sum(len(b) for b in blocks), x_NxD, rows)
    train_block = make_train_block(groups)
    losses = []
    for block in blocks:
        states, metrics = train_block(states, hypers, jnp.asarray(block)[None], NOTHING)
        losses.append([np.asarray(m["loss"]) for m in metrics])
    return groups, states, losses


def config_of(*activations, **changes) -> TrainConfig:
    return TrainConfig(**{"activation": activations, "hidden_dim": 48, "k": 6, "target_l0": 6.0, **changes})


def test_three_kinds_compile_once_and_equal_those_trained_alone(blocks_SxBxD, caplog):
    with jax.log_compiles(), caplog.at_level("WARNING"):
        groups, together, _ = run(config_of("relu", "jump_relu", "topk"), blocks_SxBxD)
    compiled = [r.message for r in caplog.records if re.match(r"Compiling jit\(train_block\)", r.message)]
    assert len(compiled) == 1, compiled
    for group, state in zip(groups, together, strict=True):
        _, (alone,), _ = run(config_of(group.signature.activation), blocks_SxBxD)
        assert int(state.step[0]) == 200
        for name, value in state.params.items():
            gap = np.abs(value - alone.params[name]).max() / np.abs(alone.params[name]).max()
            assert gap < 1e-4, (group.signature.activation, name, gap)


def test_new_values_do_not_compile_again(blocks_SxBxD):
    def two_of_each(**changes) -> TrainConfig:
        return config_of("relu", "topk", **{"k": (6, 4), "target_l0": (6.0, 4.0), **changes})

    groups, *_ = prepare(two_of_each(), 200, jnp.asarray(blocks_SxBxD[0, 0]))
    train_block = make_train_block(groups)
    new = [{"lr": 3e-4}, {"target_l0": (3.0, 9.0)}, {"k": (6, 2)}, {"seed": 7}, {"dead_threshold": 0.01, "epochs": 3}]
    new += [{"normalization": "none"}, {"dead_rule": "anthropic"}, {"warmup": 0.5}, {"aux_coefficient": 0.5}]
    for changes in ({}, *new):
        changed = two_of_each(**changes)
        _, states, hypers = prepare(changed, 300, jnp.asarray(blocks_SxBxD[0, 0]))
        train_block(states, hypers, jnp.asarray(blocks_SxBxD[:1]), NOTHING)
    assert train_block._cache_size() == 1


@pytest.mark.parametrize("kind", ["relu", "jump_relu", "gated", "topk", "batch_topk"])
def test_members_side_by_side_equal_members_in_turn(blocks_SxBxD, kind):
    """The vmap for accelerators and the loop for CPUs train the same weights."""
    config = config_of(kind, lr=(1e-3, 3e-4))
    results = []
    for side_by_side in (1, 2):
        groups, states, hypers = prepare(config, 100, blocks_SxBxD[0].reshape(-1, D)[:256])
        train_block = make_train_block(groups, side_by_side)
        (state,), _ = train_block(states, hypers, jnp.asarray(blocks_SxBxD[:1]), NOTHING)
        results.append(state.params)
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=2e-3, atol=2e-5)
        assert np.abs(results[0][name][0] - results[0][name][1]).max() > 1e-4, "two learning rates, two members"


@pytest.mark.parametrize("kind", ["relu", "jump_relu", "topk"])
def test_l0_is_steered_to_its_target(blocks_SxBxD, kind):
    blocks = np.concatenate([blocks_SxBxD] * 4)
    groups, states, _ = run(config_of(kind), blocks)
    state = jax.tree.map(lambda leaf: leaf[0], states[0])
    from flax import nnx

    sae = nnx.merge(groups[0].signature.graphdef(), state.params, state.settings)
    x = (blocks[0].reshape(-1, D) - blocks[0].mean((0, 1))) / blocks[0].std((0, 1))
    assert float((sae.encode(jnp.asarray(x)) > 0).sum(1).mean()) == pytest.approx(6, rel=0.1)


@pytest.mark.parametrize("kind", ["relu", "jump_relu", "topk"])
def test_dead_features_take_the_direction_of_badly_reconstructed_rows(blocks_SxBxD, kind):
    config = config_of(kind)
    group, hyper = one_member(config, D, 1000)
    rows_NxD = jnp.asarray(blocks_SxBxD[0].reshape(-1, D))
    state = start_member(group.signature, hyper, rows_NxD)
    dead = np.array([3, 10, 40])
    counts = jnp.full(48, 100_000, jnp.int32).at[dead].set(0)
    params = {**state.params, "b_enc": state.params["b_enc"].at[dead].set(-100.0)}
    clip, adam = state.optimizer
    squares = {name: jnp.arange(v.size, dtype=jnp.float32).reshape(v.shape) for name, v in adam.nu.items()}
    adam = adam._replace(mu=jax.tree.map(jnp.ones_like, adam.mu), nu=squares)
    state = state.replace(params=params, firings_F=counts, step=jnp.int32(500), optimizer=(clip, adam))
    after = look_for_dead(group.signature, hyper, state, rows_NxD)

    living = np.setdiff1d(np.arange(48), dead)
    for name in state.params:
        if name == "b_dec":
            np.testing.assert_array_equal(after.params[name], state.params[name])
            continue
        kept = [np.asarray(tree[name])[living] for tree in (after.params, state.params)]
        np.testing.assert_array_equal(*kept)
        assert (after.optimizer[1].mu[name][dead] == 0).all()
        typical = np.broadcast_to(squares[name][living].mean(0), squares[name][dead].shape)
        np.testing.assert_allclose(after.optimizer[1].nu[name][dead], typical, rtol=1e-5)
        np.testing.assert_array_equal(after.optimizer[1].nu[name][living], squares[name][living])
        assert (after.optimizer[1].mu[name][living] == 1).all()
    new = np.asarray(after.params["W_dec"])[dead]
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1, rtol=1e-5)
    assert np.abs(new @ new.T - np.eye(3)).max() < 0.99, "each from a row of its own"
    assert (np.asarray(after.firings_F) == 0).all() and int(after.last_dead_check) == 500

    from flax import nnx

    sae = nnx.merge(group.signature.graphdef(), after.params, after.settings)
    assert (np.asarray(sae.encode(rows_NxD) > 0).sum(0)[dead] > 0).all(), "what was revived fires"

    late = look_for_dead(group.signature, hyper, state.replace(step=jnp.int32(900)), rows_NxD)
    np.testing.assert_array_equal(late.params["W_dec"], state.params["W_dec"])


@pytest.mark.parametrize("kind", ["relu", "jump_relu", "topk"])
def test_features_are_revived_even_if_all_are_dead(blocks_SxBxD, kind):
    """If all features are dead, they are revived, too. A row without an error gives no direction and revives none."""
    config = config_of(kind)
    group, hyper = one_member(config, D, 1000)
    rows_NxD = jnp.asarray(blocks_SxBxD[0].reshape(-1, D)[:100])
    state = start_member(group.signature, hyper, rows_NxD).replace(step=jnp.int32(500))
    after = look_for_dead(group.signature, hyper, state, rows_NxD)
    np.testing.assert_allclose(np.linalg.norm(after.params["W_dec"], axis=1), 1, rtol=1e-5)
    assert np.abs(after.params["W_dec"] - state.params["W_dec"]).max(1).min() > 0, "each is another"
    constant = state.replace(params={**state.params, "b_enc": state.params["b_enc"] - 100})
    same = look_for_dead(group.signature, hyper, constant, jnp.tile(state.params["b_dec"], (64, 1)))
    for name, value in constant.params.items():
        np.testing.assert_array_equal(same.params[name], value, err_msg=name)
