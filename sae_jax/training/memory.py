"""About how much memory a training run takes, and whether that is there: looked at before anything expensive begins.

What is counted was measured (`tests/benchmarks/memory.py`), and is right to about a quarter. Starts no backend of JAX.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from harvest.errors import InputError
from sae_jax.config import TrainConfig
from sae_jax.evaluate import CALIBRATION_ROWS, CHUNK_ROWS
from sae_jax.training.batches import BLOCK_BYTES, ERA_BYTES
from sae_jax.training.mesh import shares_of
from sae_jax.training.population import Group, Signature

LIBRARIES = 910 << 20  # of a process with JAX, and torch with a small language model, which a harvest leaves behind
PROGRAM = 100 << 20  # that compiling a group's program takes
EXPORT_COPIES = 6  # of a member's weights, while they are scaled in float64
EVALUATION_COPIES = 4  # of a chunk's features
WORKING_COPIES = 27  # tenths of a member's state: itself, its gradients and what comes of them
DENSE_COPIES = 6  # of a batch's features
REVIVED_ROWS = 1024  # that a look for dead features takes, and as many copies:
REVIVING_COPIES = 3


@dataclass(frozen=True)
class Needed:
    """Bytes at the peak of training, by what they are for: of this process, and of a device with its own memory."""

    host: dict[str, int]
    device: dict[str, int]  # empty where there is none


def needed(groups: Sequence[Group], config: TrainConfig, stored_bytes: int, devices: int, on_host: bool) -> Needed:
    """`stored_bytes` are those of the training rows of all sites, `on_host` whether devices share the process's memory.

    The peak is the start, a checkpoint (its copy, while the next block trains), or the evaluation.
    """
    shares = shares_of(groups, devices)
    members = [group.signature for group in groups for _ in group.members]
    held_N, working_N, batch_N = ([0] * devices for _ in range(3))
    for group, share in zip(groups, shares, strict=True):
        state, dense = state_bytes(group.signature), dense_bytes(group.signature, config)
        for n in share.devices:
            places = max(share.counts)
            at_once = 1 if on_host else places
            held_N[n] += places * state
            working_N[n] = max(working_N[n], at_once * WORKING_COPIES * state // 10)
            batch_N[n] = max(batch_N[n], at_once * dense)
    weights, widest = sum(map(weight_bytes, members)), max(members, key=lambda signature: signature.hidden_dim)
    host = {
        "libraries and compiled programs": LIBRARIES + PROGRAM * len(groups),
        "rows that are read ahead": 2 * min(ERA_BYTES, stored_bytes) + (2 + devices) * BLOCK_BYTES,
        "export of the widest member": EXPORT_COPIES * weight_bytes(widest),
    }
    evaluating = {
        "weights to evaluate": 2 * weights,
        "features of the rows of an evaluation": EVALUATION_COPIES * CHUNK_ROWS * widest.hidden_dim * 4,
    }
    training = {"a checkpoint": sum(map(state_bytes, members))}
    on_device = {"weights and moments": held_N, "a step, by the width": working_N, "a step, by the batch": batch_N}
    if on_host:
        training |= {name: sum(of_N) for name, of_N in on_device.items()}
        device: dict[str, int] = {}
    else:
        busiest = max(range(devices), key=lambda n: sum(of_N[n] for of_N in on_device.values()))
        device = {name: of_N[busiest] for name, of_N in on_device.items()}
    return Needed(host | max(training, evaluating, key=lambda parts: sum(parts.values())), device)


def weight_bytes(signature: Signature) -> int:
    return 4 * (2 * signature.hidden_dim * signature.d_model + 4 * signature.hidden_dim + signature.d_model)


def state_bytes(signature: Signature) -> int:
    """Weights, Adam's two moments, perhaps the average, and what is counted of dead features."""
    return (4 if signature.averages else 3) * weight_bytes(signature) + 8 * signature.hidden_dim


def dense_bytes(signature: Signature, config: TrainConfig) -> int:
    """What a step, a look at held-out rows or one for dead features makes of rows times features, for one member."""
    batch = DENSE_COPIES * config.batch_size // config.micro_batches
    calibration = 2 * CALIBRATION_ROWS if signature.sparsity_control == "target_l0" else 0
    return 4 * signature.hidden_dim * max(batch, calibration, REVIVING_COPIES * REVIVED_ROWS)


def available() -> int:
    """Bytes that this process may still take: of the machine, or of its control group where that allows less."""
    return max(0, min([psutil.virtual_memory().available, *_left_in_control_groups()]))


def _left_in_control_groups(root: Path = Path("/sys/fs/cgroup"), of: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What every group above this process (none on macOS) leaves; files that it could drop count as left."""
    try:
        lines = [line.split(":", 2) for line in of.read_text().splitlines()]
    except OSError:
        return []
    left = []
    for _, controllers, path in lines:
        if controllers not in ("", "memory"):
            continue
        base = root / controllers
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        inside = base / path.lstrip("/")
        for group in [inside, *inside.parents]:
            try:
                limit, used = (int((group / name).read_text()) for name in names[:2])
                facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                left.append(limit - used + int(facts.get(names[2], 0)))
            except (OSError, ValueError):  # it has no limit, or does not show it here
                pass
            if group == base:
                break
    return left


def has_accelerator() -> bool:
    """Whether JAX may find a device with a memory of its own; nothing is started to find out."""
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
    return os.environ.get("JAX_PLATFORMS") != "cpu" and any(find_spec(name) for name in plugins)


def refuse_too_large(need: Needed, device_limit: int | None = None) -> None:
    """Raises InputError where training would not fit, with what it needs, what there is and what to change."""
    refuse(need.host, "of memory", available() + psutil.Process().memory_info().rss)
    if device_limit is not None:
        refuse(need.device, "of the device's memory", device_limit)


def refuse(parts: dict[str, int], what: str, there: int) -> None:
    if sum(parts.values()) <= there:
        return
    largest = max(parts, key=lambda name: parts[name])
    change = "a smaller --hidden-dim, or fewer members"
    if largest == "a step, by the batch":
        change = "a smaller --batch-size, more --micro-batches, or a smaller --hidden-dim"
    raise InputError(
        f"this population would take about {in_gb(sum(parts.values()))} {what}, and {in_gb(there)} are to be had "
        f"(most of it for {largest}: {in_gb(parts[largest])}): ask for {change}"
    )


def in_gb(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count < 1e12 else f"{count / 1e9:,.0f} GB"
