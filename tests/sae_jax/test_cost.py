"""The estimated time of training, beside the time that steps take."""

import statistics
import time

import jax
import numpy as np
import pytest
from populations import placed
from rich.filesize import decimal

from analysis.ui.terminal.tables import plan_text
from harvest.request import HarvestRequest
from sae_jax.config import TrainConfig
from sae_jax.cost import plan
from sae_jax.training.axes import Axes
from sae_jax.training.mesh_plan import Machine, MeshPlan
from sae_jax.training.programs import make_train_block
from sae_jax.training.roofline import H100

D, STEPS, BLOCKS = 256, 10, 8


def seconds_per_step(config: TrainConfig, devices: int) -> float:
    """CPU time of a step divided by the devices in use, which other processes on this machine hardly change."""
    raw_NxD = np.random.default_rng(0).standard_normal((STEPS * config.batch_size, D)).astype(np.float32)
    placement, states, hypers, groups = placed(config, 10_000, raw_NxD, Axes(members=devices))
    blocks = placement.rows(raw_NxD.reshape(1, STEPS, config.batch_size, D))
    calibration_LxNxD = placement.everywhere(raw_NxD[None, :256])
    train_block, seconds = make_train_block(groups, placement=placement), []
    for _ in range(BLOCKS):
        began = time.process_time()
        states, metrics = train_block(states, hypers, blocks, calibration_LxNxD)
        jax.block_until_ready(metrics)
        seconds.append((time.process_time() - began) / STEPS / devices)
    return statistics.median(seconds[BLOCKS // 2 :])


def test_a_plan_for_accelerators_has_the_mesh_its_bytes_and_what_limits_it():
    config = TrainConfig(("relu", "topk"), 1 << 16, seed=(0, 1, 2, 3), batch_size=4096, epochs=1)
    planned = plan(config, HarvestRequest(n_samples=10**6, seq_len=128), 2304, Machine(8, H100, 72 * 10**9))
    assert planned.mesh == MeshPlan(Axes(members=4, features=2), 1), "a topk member takes longer, so devices share both"
    assert planned.limit == "arithmetic"
    relu, topk = planned.members[0], planned.members[-1]
    assert topk.seconds == pytest.approx(relu.seconds * 18 / 10), "AuxK"
    said = " ".join(plan_text(planned).split())
    assert "to compile and train on 8 H100s, limited by arithmetic --mesh members=4,data=1,features=2: 1 member" in said
    for purpose, size in planned.memory.device.items():
        assert f"{decimal(size)} for {purpose}" in said
    asked = plan(config, HarvestRequest(), 2304, Machine(8, H100, 72 * 10**9), asked=Axes(features=8))
    assert asked.mesh.axes == Axes(features=8)


def test_a_plan_for_one_cpu_core_says_nothing_about_a_mesh():
    said = plan_text(plan(TrainConfig(seed=(0, 1)), HarvestRequest(), D, Machine(1)))
    assert said.endswith("on this CPU")
    assert "--mesh members=2," in plan_text(plan(TrainConfig(seed=(0, 1)), HarvestRequest(), D, Machine(2)))


@pytest.mark.slow
@pytest.mark.parametrize("hidden_dim", [256, 1024, 2048])
@pytest.mark.parametrize("seeds", [1, 4, 12])
def test_the_estimate_is_right_to_a_factor_of_2(seeds, hidden_dim):
    kinds = ("relu", "jump_relu", "topk") if seeds > 1 else ("relu",)
    config = TrainConfig(kinds, hidden_dim, k=16, target_l0=16.0, seed=tuple(range(seeds)))
    planned = plan(config, HarvestRequest(), D)
    measured = seconds_per_step(config, planned.mesh.axes.devices)
    training = sum(member.seconds for member in planned.members)
    assert 1 / 2 < training / planned.steps / measured < 2
    assert planned.seconds > training, "compiling counts, too"
