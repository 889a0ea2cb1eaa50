"""The estimated time of training, beside the time that steps take."""

import statistics
import time

import jax
import numpy as np
import pytest
from populations import placed

from harvest.request import HarvestRequest
from sae_jax.config import TrainConfig
from sae_jax.cost import cpu_devices, plan
from sae_jax.training.step import make_train_block

D, STEPS, BLOCKS = 256, 10, 8


def seconds_per_step(config: TrainConfig, devices: int) -> float:
    """CPU time of a step divided by the devices in use, which other processes on this machine hardly change."""
    raw_NxD = np.random.default_rng(0).standard_normal((STEPS * config.batch_size, D)).astype(np.float32)
    placement, states, hypers, groups = placed(config, 10_000, raw_NxD, devices)
    blocks = placement.everywhere(raw_NxD.reshape(1, STEPS, config.batch_size, D))
    calibration_LxNxD = placement.everywhere(raw_NxD[None, :256])
    train_block, seconds = make_train_block(groups, placement=placement), []
    for _ in range(BLOCKS):
        began = time.process_time()
        states, metrics = train_block(states, hypers, blocks, calibration_LxNxD)
        jax.block_until_ready(metrics)
        seconds.append((time.process_time() - began) / STEPS / devices)
    return statistics.median(seconds[BLOCKS // 2 :])


@pytest.mark.slow
@pytest.mark.parametrize("hidden_dim", [256, 1024, 2048])
@pytest.mark.parametrize("seeds", [1, 4, 12])
def test_the_estimate_is_right_to_a_factor_of_2(seeds, hidden_dim):
    kinds = ("relu", "jump_relu", "topk") if seeds > 1 else ("relu",)
    config = TrainConfig(kinds, hidden_dim, k=16, target_l0=16.0, seed=tuple(range(seeds)))
    planned = plan(config, HarvestRequest(), D)
    measured = seconds_per_step(config, min(cpu_devices(), len(planned.members)))
    training = sum(member.seconds for member in planned.members)
    assert 1 / 2 < training / planned.steps / measured < 2
    assert planned.seconds > training, "compiling counts, too"
