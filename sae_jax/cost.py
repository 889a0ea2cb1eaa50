"""What a run would train, and about what it would cost: for --dry-run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import jax
import numpy as np
from joblib import cpu_count

from harvest.errors import InputError
from harvest.request import HarvestRequest
from harvest.sources import Source
from sae_jax.config import TrainConfig
from sae_jax.members import Member, members_of
from sae_jax.ops.sparse import DENSEST
from sae_jax.training.memory import Needed, has_accelerator, needed, refuse_too_large
from sae_jax.training.population import Signature, groups_of
from sae_jax.training.step import sparse_pays

MATMULS, SPARSE_MATMULS = 5, 1  # of B x D x F a step, the second where few features fire
UPDATE_SECONDS = 4e-9  # of Adam, a parameter


@dataclass(frozen=True)
class Planned:
    """One member: its group is the program that it shares with others; bytes are of weights and Adam's moments."""

    member: Member
    group: int
    parameters: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    members: list[Planned]
    steps: int
    memory: Needed

    @property
    def seconds(self) -> float:
        return sum(planned.seconds for planned in self.members)


def plan(config: TrainConfig, request: HarvestRequest, d_model: int) -> Plan:
    """Seconds are those of this machine's CPU, from the speed of one matrix product: right to a factor of two or so."""
    positions = request.seq_len - (not request.keep_first_position)
    rows = int(request.n_samples * (1 - request.held_out)) * positions
    steps = config.epochs * (rows // config.batch_size)
    if not steps:
        raise InputError(
            f"--batch-size {config.batch_size}: there are only about {rows} training rows; use fewer a batch"
        )
    flops, members = flops_per_second(), []
    for number, group in enumerate(groups_of(members_of(config, request.sites), config, d_model), 1):
        matrix = d_model * group.signature.hidden_dim
        extra = jax.eval_shape(lambda of=group.signature: of.kind.extra_params(of.hidden_dim))
        parameters = 2 * matrix + group.signature.hidden_dim + d_model + sum(value.size for value in extra.values())
        for m in group.members:
            products = SPARSE_MATMULS if is_sparse(m, group.signature) else MATMULS
            seconds = 2 * products * config.batch_size * matrix / flops + UPDATE_SECONDS * parameters
            copies = 4 if group.signature.averages else 3  # weights, two moments, and their average
            members.append(Planned(m, number, parameters, 4 * copies * parameters, steps * seconds))
    return Plan(members, steps, memory(config, request, d_model))


def memory(config: TrainConfig, request: HarvestRequest, d_model: int) -> Needed:
    """Of a training on this machine, its cores the devices where JAX has no other."""
    members = members_of(config, request.sites)
    devices = int(os.environ.get("JAX_NUM_CPU_DEVICES") or cpu_count())
    rows = request.n_samples * (request.seq_len - (not request.keep_first_position))
    stored = rows * d_model * np.dtype(request.store_dtype).itemsize * len(request.sites)
    groups = groups_of(members, config, d_model)
    return needed(groups, config, stored, min(devices, len(members)), on_host=not has_accelerator())


def refuse_before_harvest(config: TrainConfig, request: HarvestRequest, model: Source) -> None:
    """Raises InputError for a population that this machine cannot train, if its model says how wide it is.

    `train` looks again, with the devices that JAX has found.
    """
    if model.d_model:
        refuse_too_large(memory(config, request, model.d_model))


def is_sparse(m: Member, signature: Signature) -> bool:
    active = m.k or m.target_l0 or m.hidden_dim  # a fixed coefficient says nothing of how many fire
    return sparse_pays(signature) and active <= DENSEST * m.hidden_dim


def flops_per_second() -> float:
    a = np.ones((768, 768), np.float32)
    a @ a
    began = time.perf_counter()
    for _ in range(5):
        a @ a
    return 5 * 2 * len(a) ** 3 / (time.perf_counter() - began)
