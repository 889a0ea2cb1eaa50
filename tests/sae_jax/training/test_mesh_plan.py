"""The choice of a mesh: members first, features for what one device cannot hold, refusals with the numbers."""

import re

import pytest
from populations import SITES

from harvest.errors import InputError
from sae_jax.config import TrainConfig
from sae_jax.members import members_of
from sae_jax.training.axes import Axes
from sae_jax.training.mesh_plan import Machine, MeshPlan, bytes_on_device, machine_of_jax, plan_mesh
from sae_jax.training.population import groups_of
from sae_jax.training.roofline import H100

GB = 10**9


def planned(devices: int, memory: float = 0.9 * H100.memory, asked: Axes | None = None, d_model: int = 256, **values):
    groups, config = population(d_model, **values)
    return plan_mesh(groups, config, Machine(devices, H100, int(memory)), asked)


def population(d_model: int, **values):
    config = TrainConfig(**values)
    return groups_of(members_of(config, SITES), config, d_model), config


def test_small_members_are_spread_over_the_devices():
    assert planned(8, hidden_dim=1024, seed=tuple(range(8))) == MeshPlan(Axes(members=8), 1)
    assert planned(8, hidden_dim=1024, seed=tuple(range(24))) == MeshPlan(Axes(members=8), 3)
    assert planned(8, hidden_dim=1024) == MeshPlan(Axes(), 1), "sums over devices would take longer than its products"


def test_a_member_that_no_device_can_hold_is_split_by_its_features():
    assert planned(8, d_model=2304, hidden_dim=1 << 20, batch_size=4096) == MeshPlan(Axes(features=8), 1)


def test_few_wide_members_use_all_devices():
    wide = {"d_model": 2304, "hidden_dim": 1 << 16, "batch_size": 4096}
    assert planned(8, seed=(0, 1), **wide) == MeshPlan(Axes(members=2, features=4), 1)


def test_axes_divide_rows_and_widths():
    odd = {"d_model": 2304, "hidden_dim": 65_537, "batch_size": 4096}
    assert planned(8, **odd).axes == Axes(data=8)
    assert planned(8, **odd | {"batch_size": 4095}).axes.devices < 8


def test_so_many_members_run_side_by_side_as_fit_into_memory():
    wide = {"d_model": 2304, "hidden_dim": 1 << 16, "batch_size": 4096, "seed": tuple(range(4))}
    groups, config = population(**wide)
    for count in (1, 2, 3, 4):
        size = sum(bytes_on_device(groups, config, Axes(), count).values())
        assert planned(1, size, **wide).side_by_side == count
        if count > 1:
            assert planned(1, size - 1, **wide).side_by_side == count - 1


def test_what_cannot_fit_is_refused_with_the_numbers():
    wide = {"d_model": 2304, "hidden_dim": 1 << 20, "batch_size": 4096}
    with pytest.raises(InputError) as refused:
        planned(2, **wide)
    needs, there = map(
        float, re.findall(r"([\d.]+) GB of memory on each device .* only ([\d.]+) GB", str(refused.value))[0]
    )
    assert needs > there == 72
    assert "--mesh members=1,data=1,features=2" in str(refused.value), "the mesh that needs least"
    assert "--hidden-dim" in str(refused.value) and "more devices" in str(refused.value)
    with pytest.raises(InputError, match="members=1,data=8,features=1.* but only 72 GB"):
        planned(8, asked=Axes(data=8), **wide)


def test_the_axes_asked_for_are_used_if_they_are_possible():
    two = {"hidden_dim": 1024, "seed": (0, 1)}
    assert planned(8, asked=Axes(2, 2, 2), **two) == MeshPlan(Axes(2, 2, 2), 1)
    with pytest.raises(InputError, match="members is only 2"):
        planned(8, asked=Axes(4), **two)


def test_cpu_cores_train_one_member_after_another():
    groups, config = population(256, seed=(0, 1, 2))
    assert plan_mesh(groups, config, Machine(2), None) == MeshPlan(Axes(members=2), 1)
    assert plan_mesh(groups, config, Machine(8), None) == MeshPlan(Axes(members=3), 1)
    assert plan_mesh(groups, config, Machine(4), Axes(features=4)) == MeshPlan(Axes(features=4), 1)
    with pytest.raises(InputError, match="JAX_NUM_CPU_DEVICES=4"):
        plan_mesh(groups, config, Machine(2), Axes(features=4))
    assert machine_of_jax().on_host
