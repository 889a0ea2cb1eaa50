"""What a run would train, and about what it would cost: for --dry-run. Imports neither torch nor jax."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from harvest.errors import InputError
from harvest.request import HarvestRequest
from sae_jax.config import TrainConfig
from sae_jax.grid import Member, members_of

MATMULS, SPARSE_MATMULS = 5, 1  # of B x D x F a step, the second where few features fire
UPDATE_SECONDS = 4e-9  # of Adam, a parameter
EXTRA = {"jump_relu": 1, "gated": 2}  # numbers that a kind learns for each feature
SPARSE_FROM = 16  # features for each active one, from which on the sparse path pays


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
    flops, groups, members = flops_per_second(), dict[tuple, int](), []
    for m in members_of(config, request.sites):
        group = groups.setdefault((m.activation, m.level, m.hidden_dim), len(groups) + 1)
        matrix = d_model * m.hidden_dim
        sparse = m.activation != "matryoshka" and (m.k or m.target_l0 or m.hidden_dim) * SPARSE_FROM <= m.hidden_dim
        products = 2 * (SPARSE_MATMULS if sparse else MATMULS) * config.batch_size * matrix / flops
        parameters = 2 * matrix + (1 + EXTRA.get(m.activation, 0)) * m.hidden_dim + d_model
        seconds = steps * (products + UPDATE_SECONDS * parameters)
        members.append(Planned(m, group, parameters, 3 * 4 * parameters, seconds))
    return Plan(members, steps)


def flops_per_second() -> float:
    a = np.ones((768, 768), np.float32)
    a @ a
    began = time.perf_counter()
    for _ in range(5):
        a @ a
    return 5 * 2 * len(a) ** 3 / (time.perf_counter() - began)
