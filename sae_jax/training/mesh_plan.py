"""The choice of a mesh: the fastest axes by the roofline on which a population fits into memory, or those asked for."""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import jax
from joblib import cpu_count

from sae_jax.config import TrainConfig
from sae_jax.training.axes import Axes, possible_axes, refuse_axes
from sae_jax.training.memory import has_accelerator, needed, refuse
from sae_jax.training.population import Group
from sae_jax.training.roofline import H100, Device, device_named, step_seconds
from sae_jax.training.shares import shares_of


@dataclass(frozen=True)
class Machine:
    """The devices for training. Without a `device`, they are CPU cores, which share the memory of the process."""

    devices: int
    device: Device | None = None
    memory: int = 0  # bytes of one device

    @property
    def on_host(self) -> bool:
        return self.device is None


class MeshPlan(NamedTuple):
    axes: Axes
    side_by_side: int  # members of a group that a device trains at a time


def machine_of_jax() -> Machine:
    """The devices of all processes, as JAX finds them. A device that is not in the table counts as an H100."""
    devices, local = jax.devices(), jax.local_devices()[0]
    if local.platform == "cpu":
        return Machine(len(devices))
    device = device_named(local.device_kind) or H100
    return Machine(len(devices), device, (local.memory_stats() or {}).get("bytes_limit") or int(device.memory))


def machine_before_jax() -> Machine:
    """This machine while JAX may not be started, since it would take an accelerator's memory from a language model.

    The cores of a CPU are the devices, as `main.py` makes them. An accelerator is not known yet: one is assumed that
    holds every population.
    """
    if has_accelerator():
        return Machine(1, H100, sys.maxsize)
    return Machine(int(os.environ.get("JAX_NUM_CPU_DEVICES") or cpu_count()))


def plan_mesh(groups: Sequence[Group], config: TrainConfig, machine: Machine, asked: Axes | None) -> MeshPlan:
    """The axes asked for, or else the fastest, and how many members of a group a device trains at a time.

    Raises InputError for axes that are not possible, and if the population does not fit into the devices' memory.
    """
    plan = best_mesh(groups, config, machine, asked)
    refuse_small_devices(bytes_on_device(groups, config, *plan), plan.axes, machine)
    return plan


def refuse_small_devices(needed: dict[str, int], axes: Axes, machine: Machine) -> None:
    """Raise InputError if a device of the machine has less memory than is needed, by purpose."""
    if not machine.on_host:
        where = f"of memory on each device (--mesh {axes})"
        refuse(needed, where, machine.memory, "fewer members, or more devices")


def best_mesh(groups: Sequence[Group], config: TrainConfig, machine: Machine, asked: Axes | None) -> MeshPlan:
    """The plan of `plan_mesh`; if the population fits on no mesh, that on which a device needs the least memory.

    Raises InputError if the axes asked for are not possible.
    """
    members = sum(len(group.members) for group in groups)
    widths = [group.signature.hidden_dim for group in groups]
    micro_batch = config.batch_size // config.micro_batches
    if asked:
        refuse_axes(asked, members, micro_batch, widths, machine.devices)
    device = machine.device
    if device is None:
        return MeshPlan(asked or Axes(members=min(machine.devices, members)), 1)

    def size(axes: Axes, side_by_side: int) -> int:
        return sum(bytes_on_device(groups, config, axes, side_by_side).values())

    def seconds(axes: Axes) -> float:
        return step_seconds(groups, config, axes, device, members).computing

    able = [asked] if asked else list(able_axes(machine.devices, members, micro_batch, widths))
    by_time = sorted(able, key=lambda axes: (seconds(axes), axes.data * axes.features, axes.data))
    fitting = next((axes for axes in by_time if size(axes, 1) <= machine.memory), None)
    axes = fitting or min(able, key=lambda axes: size(axes, 1))
    most = max(max(share.counts) for share in shares_of(groups, axes.members))
    side_by_side = bisect_right(range(1, most + 1), machine.memory, key=lambda count: size(axes, count))
    return MeshPlan(axes, max(1, side_by_side))


def able_axes(devices: int, members: int, micro_batch: int, widths: list[int]) -> Iterator[Axes]:
    """The axes on so many devices or fewer that divide the rows and all widths, with a member on every position."""
    for axes in chain.from_iterable(possible_axes(count) for count in range(1, devices + 1)):
        if (
            axes.members <= members
            and micro_batch % axes.data == 0
            and all(width % axes.features == 0 for width in widths)
        ):
            yield axes


def bytes_on_device(groups: Sequence[Group], config: TrainConfig, axes: Axes, side_by_side: int) -> dict[str, int]:
    """Bytes by purpose on the device that needs most."""
    return needed(groups, config, 0, axes, on_host=False, side_by_side=side_by_side).device
