"""What a run would train, and about what it would cost: for --dry-run."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from harvest.errors import InputError
from harvest.request import HarvestRequest
from sae_jax.config import TrainConfig
from sae_jax.grid import Member, members_of
from sae_jax.population import Signature, groups_of
from sae_jax.sparse import DENSEST
from sae_jax.step import sparse_pays

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
        extra = group.signature.kind.extra_params(group.signature.hidden_dim)
        parameters = 2 * matrix + group.signature.hidden_dim + d_model + sum(value.size for value in extra.values())
        for m in group.members:
            products = SPARSE_MATMULS if is_sparse(m, group.signature) else MATMULS
            seconds = 2 * products * config.batch_size * matrix / flops + UPDATE_SECONDS * parameters
            copies = 4 if group.signature.averages else 3  # weights, two moments, and their average
            members.append(Planned(m, number, parameters, 4 * copies * parameters, steps * seconds))
    return Plan(members, steps)


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
