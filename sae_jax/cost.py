"""The members, time and memory of a planned run, for --dry-run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from harvest.request import HarvestRequest
from harvest.row_formats import BYTES
from sae_jax.config import TrainConfig
from sae_jax.members import Member, members_of
from sae_jax.ops.sparse import DENSEST
from sae_jax.training.axes import Axes
from sae_jax.training.memory import Needed, needed
from sae_jax.training.mesh_plan import Machine, MeshPlan, best_mesh, machine_before_jax
from sae_jax.training.population import Group, Signature, groups_of
from sae_jax.training.roofline import flops_of_member, step_seconds
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
    """The cost of a run on `machine`. What limits a step is empty for a CPU, which is not estimated by a roofline."""

    members: list[Planned]
    steps: int
    memory: Needed
    machine: Machine
    mesh: MeshPlan
    limit: str

    @property
    def seconds(self) -> float:
        """The time of compiling, which is shorter if the programs are in the cache, and of training."""
        groups = len({planned.group for planned in self.members})
        return COMPILE_SECONDS * groups + sum(planned.seconds for planned in self.members)


def plan(
    config: TrainConfig,
    request: HarvestRequest,
    d_model: int,
    machine: Machine | None = None,
    asked: Axes | None = None,
) -> Plan:
    """The plan of a run on a machine, by default on this one, with the axes asked for or the best ones.

    On a CPU, seconds are right to a factor of 2 if nothing else runs. A population that does not fit into memory has a
    plan, too. Raises InputError for axes that are not possible.
    """
    machine = machine or machine_before_jax()
    steps = config.steps(request.training_rows, request.stream)
    groups = groups_of(members_of(config, request.sites), config, d_model)
    mesh = best_mesh(groups, config, machine, asked)
    groups = groups_of(members_of(config, request.sites), config, d_model, mesh.axes.splits_members)
    if machine.device is None:
        seconds, limit = on_cpu(groups, config, mesh.axes), ""
    else:
        step = step_seconds(groups, config, mesh.axes, machine.device, mesh.side_by_side)
        seconds, limit = by_work(groups, config, step.total), step.limit
    members = []
    for number, group in enumerate(groups, 1):
        parameters = parameters_of(group.signature)
        copies = 4 if group.signature.averages else 3  # weights, two moments, perhaps an average of weights
        members += [
            Planned(m, number, parameters, 4 * copies * parameters, steps * seconds[m.id]) for m in group.members
        ]
    rows = request.n_samples * request.rows_per_window
    stored = rows * d_model * BYTES[request.store_dtype] * len(request.sites)
    memory = needed(groups, config, stored, mesh.axes, machine.on_host, mesh.side_by_side)
    return Plan(members, steps, memory, machine, mesh, limit)


def on_cpu(groups: Sequence[Group], config: TrainConfig, axes: Axes) -> dict[str, float]:
    """The part of every member in the time of a step on CPU cores, from the speed of a matrix product on a core."""
    flops, seconds = flops_per_second(), {}
    for group in groups:
        matrix = group.signature.d_model * group.signature.hidden_dim
        for m in group.members:
            active = active_on_sparse_path(m, group.signature)
            products = SPARSE_MATMULS if active else MATMULS
            on_a_core = 2 * products * config.batch_size * matrix / flops
            on_a_core += UPDATE_SECONDS * parameters_of(group.signature)
            on_a_core += SPARSE_SECONDS * config.batch_size * active * group.signature.d_model
            seconds[m.id] = on_a_core / axes.devices
    return seconds


def by_work(groups: Sequence[Group], config: TrainConfig, seconds: float) -> dict[str, float]:
    """The part of every member in the time of a step of all, in proportion to its arithmetic."""
    work = {m.id: flops_of_member(group.signature, config, Axes()) for group in groups for m in group.members}
    total = sum(work.values())
    return {member: seconds * flops / total for member, flops in work.items()}


def parameters_of(signature: Signature) -> int:
    extra = jax.eval_shape(lambda: signature.kind.extra_params(signature.hidden_dim))
    weights = 2 * signature.hidden_dim * signature.d_model + signature.hidden_dim + signature.d_model
    return weights + sum(value.size for value in extra.values())


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
