"""The time of a step: its terms in closed form, and the products of every kind as XLA counts them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from populations import SITES, prepare

from sae_jax.config import TrainConfig
from sae_jax.members import members_of
from sae_jax.models.registry import KINDS
from sae_jax.training.axes import Axes
from sae_jax.training.population import groups_of
from sae_jax.training.roofline import (
    FEED,
    H100,
    LATENCY,
    REACHED,
    device_named,
    flops_of_member,
    network_bytes,
    products,
    step_seconds,
)
from sae_jax.training.step import make_gradients

D, F, B = 256, 4096, 512


def groups_and_config(d_model=D, **values):
    config = TrainConfig(**{"hidden_dim": F, "batch_size": B} | values)
    return groups_of(members_of(config, SITES), config, d_model), config


@pytest.mark.parametrize("kind", KINDS)
def test_the_products_of_a_dense_step_are_those_that_xla_counts(kind):
    config = TrainConfig((kind,), F, batch_size=B)
    (group,), (state,), (hyper,) = prepare(config, 1000, np.ones((256, D), np.float32))
    first = jax.tree.map(lambda leaf: leaf[0], (state, hyper))
    gradients = jax.jit(make_gradients(group.signature, in_turn=False))
    counted = gradients.lower(first[0], jnp.zeros((B, D)), first[1]).compile().cost_analysis()["flops"]
    assert products(group.signature) == round(counted / (2 * B * D * F)), "state them in EXTRA of roofline.py"


def test_a_plain_step_takes_10_d_f_operations_a_row_and_all_axes_share_them():
    (group,), config = groups_and_config()
    assert flops_of_member(group.signature, config, Axes()) == B * 10 * D * F
    assert flops_of_member(group.signature, config, Axes(1, 2, 4)) == B * 10 * D * F / 8


def test_gradients_are_added_over_data_and_reconstructions_over_features():
    """In a ring of n devices, each sends 2 (n − 1)/n times what is added up."""
    (group,), config = groups_and_config()
    assert network_bytes(group.signature, config, Axes(members=8)) == {"data": 0, "features": 0}
    gradients = 4 * (2 * F * D + F + D)
    assert network_bytes(group.signature, config, Axes(data=4)) == {"data": 1.5 * gradients, "features": 0}
    assert network_bytes(group.signature, config, Axes(features=2)) == {"data": 0, "features": 4 * B * D}
    both = network_bytes(group.signature, config, Axes(1, 4, 2))
    assert both == {"data": 1.5 * (gradients - 4 * D) / 2 + 1.5 * 4 * D, "features": 4 * B * D / 4}

    (topk,), config = groups_and_config(activation="topk")  # its reconstruction, that of AuxK, and two thresholds
    assert network_bytes(topk.signature, config, Axes(features=2))["features"] == 4 * B * (2 * D + 2 * 31)


def test_a_large_member_is_limited_by_arithmetic_and_a_small_one_by_its_feed():
    groups, config = groups_and_config(2304, hidden_dim=1 << 20, batch_size=4096)
    seconds = step_seconds(groups, config, Axes(), H100, 1)
    assert seconds.total == seconds.arithmetic == 4096 * 10 * 2304 * 2**20 / (REACHED * H100.flops["float32"])
    assert seconds.limit == "arithmetic" and seconds.feed == 4096 * 2304 * 2 / FEED

    groups, config = groups_and_config()
    seconds = step_seconds(groups, config, Axes(), H100, 1)
    assert seconds.limit == "feed" and seconds.total == seconds.feed
    four_sites = groups_of(members_of(config, tuple((layer, "resid_pre") for layer in range(4))), config, D)
    assert step_seconds(four_sites, config, Axes(), H100, 1).feed == 4 * seconds.feed


def test_members_side_by_side_wait_for_sums_over_devices_together():
    groups, config = groups_and_config(seed=tuple(range(8)))
    alone, beside = (step_seconds(groups, config, Axes(features=2), H100, count).network for count in (1, 8))
    assert alone - beside == pytest.approx(7 * 2 * LATENCY)


def test_sums_between_machines_share_their_network_adapters():
    assert H100.sends(8, 1) == H100.sends(2, 4) == H100.link
    assert H100.sends(16, 1) == 8 * H100.beyond, "all adapters of each machine"
    assert H100.sends(8, 8) == H100.beyond, "each of the eight rings has its own adapter"


@pytest.mark.parametrize(
    "kind, name", [("NVIDIA H100 80GB HBM3", "H100"), ("TPU v5", "TPU v5p"), ("TPU v5 lite", "TPU v5e")]
)
def test_devices_are_known_by_the_names_that_jax_gives_them(kind, name):
    assert device_named(kind).name == name
    assert device_named("Quadro K620") is None
