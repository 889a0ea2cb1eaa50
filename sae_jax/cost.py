"""The members, time and memory of a planned run, for --dry-run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import jax
import numpy as np
from joblib import cpu_count
from threadpoolctl import threadpool_limits

from harvest.request import HarvestRequest
from harvest.row_formats import BYTES
from sae_jax.config import TrainConfig
from sae_jax.members import Member, members_of
from sae_jax.ops.sparse import DENSEST
from sae_jax.training.memory import Needed, has_accelerator, needed
from sae_jax.training.population import Signature, groups_of
from sae_jax.training.step import sparse_pays

MATMULS, SPARSE_MATMULS = 5, 1  # products of size B x D x F per step, on the dense and on the sparse path
COMPILE_SECONDS = 3.0  # time to compile the program of a group
UPDATE_SECONDS = 2.5e-9  # time of Adam per parameter
SPARSE_SECONDS = 0.8e-9  # time of the sparse path per row, active feature and dimension


@dataclass(frozen=True)
class Planned:
    """The cost of one member. Members of one group share a program. Bytes include weights and Adam's moments."""

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
        """The time of compiling, which is shorter if the programs are in the cache, and of training."""
        groups = len({planned.group for planned in self.members})
        return COMPILE_SECONDS * groups + sum(planned.seconds for planned in self.members)


def plan(config: TrainConfig, request: HarvestRequest, d_model: int) -> Plan:
    """The plan of a run. Seconds are right to a factor of 2 if nothing else runs on this CPU.

    They follow from the speed of a matrix product. Each member trains on one core, beside other members.
    """
    steps = config.epochs * (request.training_rows // config.batch_size)
    flops, members, wanted = flops_per_second(), [], members_of(config, request.sites)
    at_once = min(cpu_devices(), len(wanted))
    for number, group in enumerate(groups_of(wanted, config, d_model), 1):
        matrix = d_model * group.signature.hidden_dim
        extra = jax.eval_shape(lambda signature=group.signature: signature.kind.extra_params(signature.hidden_dim))
        parameters = 2 * matrix + group.signature.hidden_dim + d_model + sum(value.size for value in extra.values())
        for m in group.members:
            active = active_on_sparse_path(m, group.signature)
            products = SPARSE_MATMULS if active else MATMULS
            seconds = 2 * products * config.batch_size * matrix / flops + UPDATE_SECONDS * parameters
            seconds += SPARSE_SECONDS * config.batch_size * active * d_model
            copies = 4 if group.signature.averages else 3  # weights, two moments, perhaps an average of weights
            members.append(Planned(m, number, parameters, 4 * copies * parameters, steps * seconds / at_once))
    return Plan(members, steps, memory(config, request, d_model))


def memory(config: TrainConfig, request: HarvestRequest, d_model: int) -> Needed:
    """The memory of training on this machine. Its CPU cores are the devices if JAX has no others."""
    members = members_of(config, request.sites)
    rows = request.n_samples * request.rows_per_window
    stored = rows * d_model * BYTES[request.store_dtype] * len(request.sites)
    groups = groups_of(members, config, d_model)
    return needed(groups, config, stored, min(cpu_devices(), len(members)), on_host=not has_accelerator())


def cpu_devices() -> int:
    return int(os.environ.get("JAX_NUM_CPU_DEVICES") or cpu_count())


def active_on_sparse_path(m: Member, signature: Signature) -> float:
    """The requested L0 of a member that trains on the sparse path; 0 on the dense path, or if none is requested."""
    active = m.l0_asked or 0.0
    return active if sparse_pays(signature) and active <= DENSEST * m.hidden_dim else 0.0


def flops_per_second() -> float:
    """The speed of a matrix product on one core, by its CPU time, which other processes hardly change."""
    a = np.ones((768, 768), np.float32)
    with threadpool_limits(1):
        a @ a
        began = time.thread_time()
        for _ in range(5):
            a @ a
        return 5 * 2 * len(a) ** 3 / (time.thread_time() - began)
