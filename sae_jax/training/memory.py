"""An estimate of the memory that a training run needs, compared with the free memory before the run begins.

The estimates were fitted to measurements (`tests/benchmarks/memory.py`) and are right to about a quarter. No JAX
backend is started.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from harvest.errors import InputError
from sae_jax.calibration import CALIBRATION_ROWS
from sae_jax.config import TrainConfig
from sae_jax.decoder_fit import bytes_of_fit
from sae_jax.evaluate import CHUNK_ROWS
from sae_jax.training.axes import Axes
from sae_jax.training.batches import BLOCK_BYTES, ERA_BYTES
from sae_jax.training.population import Group, Signature
from sae_jax.training.shares import shares_of

LIBRARIES = 910 << 20  # bytes of a process with JAX, torch and a small language model, which remains after a harvest
PROGRAM = 100 << 20  # bytes to compile the program of a group
EXPORT_COPIES = 6  # copies of a member's weights while they are scaled in float64
EVALUATION_COPIES = 4  # copies of the feature values of a chunk
WORKING_COPIES = 27  # tenths of a member's state: the state, its gradients and their updates
DENSE_COPIES = 6  # copies of the feature values of a batch
REVIVED_ROWS = 1024  # rows from which dead features are revived
REVIVING_COPIES = 3  # copies of the feature values of these rows


@dataclass(frozen=True)
class Needed:
    """Bytes at the peak of training, by purpose, for this process and for the device that needs most.

    If the devices share the memory of the process, `host` includes what all of them need.
    """

    host: dict[str, int]
    device: dict[str, int]


def needed(
    groups: Sequence[Group], config: TrainConfig, stored_bytes: int, axes: Axes, on_host: bool, side_by_side: int
) -> Needed:
    """The estimated memory of a training run on these axes, with so many members of a group at a time on each device.

    `stored_bytes` is the size of the training rows of all sites. `on_host` is true if the devices share the memory of
    the process. The peak is either in training, with the copy of a checkpoint, or in the evaluation.
    """
    members = [group.signature for group in groups for _ in group.members]
    held_N, working_N, batch_N = ([0] * axes.members for _ in range(3))
    for group, share in zip(groups, shares_of(groups, axes.members), strict=True):
        state, dense = state_bytes(group.signature) // axes.features, dense_bytes(group.signature, config, axes)
        slots = max(share.counts)
        at_once = min(slots, side_by_side)
        for n in share.positions:
            held_N[n] += slots * state
            working_N[n] = max(working_N[n], at_once * WORKING_COPIES * state // 10)
            batch_N[n] = max(batch_N[n], at_once * dense)
    weights, widest = sum(map(weight_bytes, members)), max(members, key=lambda signature: signature.hidden_dim)
    host = {
        "libraries and compiled programs": LIBRARIES + PROGRAM * len(groups),
        "rows read in advance": 2 * min(ERA_BYTES, stored_bytes) + (2 + axes.members * axes.features) * BLOCK_BYTES,
        "export of the widest member": EXPORT_COPIES * weight_bytes(widest),
    }
    evaluating = {
        "weights to evaluate": 2 * weights,
        "the fit of the widest decoder": bytes_of_fit(widest.d_model, widest.hidden_dim) if config.fit_decoder else 0,
        "feature values in the evaluation": EVALUATION_COPIES * CHUNK_ROWS * widest.hidden_dim * 4,
    }
    training = {"a checkpoint": sum(map(state_bytes, members))}
    on_device = {"weights and moments": held_N, "the weights in a step": working_N, "the batch in a step": batch_N}
    if on_host:
        training |= {name: axes.data * axes.features * sum(bytes_N) for name, bytes_N in on_device.items()}
    busiest = max(range(axes.members), key=lambda n: sum(bytes_N[n] for bytes_N in on_device.values()))
    device = {name: bytes_N[busiest] for name, bytes_N in on_device.items()}
    return Needed(host | max(training, evaluating, key=lambda parts: sum(parts.values())), device)


def weight_bytes(signature: Signature) -> int:
    return 4 * (2 * signature.hidden_dim * signature.d_model + 4 * signature.hidden_dim + signature.d_model)


def state_bytes(signature: Signature) -> int:
    """Bytes of the weights, of Adam's two moments, of an average and the decoder's start if needed, and of counts."""
    start = 4 * signature.hidden_dim * signature.d_model if signature.anchored else 0
    return (4 if signature.averages else 3) * weight_bytes(signature) + 8 * signature.hidden_dim + start


def dense_bytes(signature: Signature, config: TrainConfig, axes: Axes) -> int:
    """Bytes on a device of the largest [rows, features] arrays of a member in a step, an L0 correction or a revival.

    Only the rows of a batch are split over the axis of data.
    """
    batch = DENSE_COPIES * config.batch_size // config.micro_batches // axes.data
    calibration = 2 * CALIBRATION_ROWS if signature.sparsity_control == "target_l0" else 0
    return 4 * signature.hidden_dim // axes.features * max(batch, calibration, REVIVING_COPIES * REVIVED_ROWS)


def available() -> int:
    """Bytes that this process may still use: those free on the machine, or less if its control group has a limit."""
    return max(0, min([psutil.virtual_memory().available, *_left_in_control_groups()]))


def _left_in_control_groups(
    root: Path = Path("/sys/fs/cgroup"), listed_in: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Bytes left in every control group of this process (none on macOS); cached files count as free."""
    try:
        lines = [line.split(":", 2) for line in listed_in.read_text().splitlines()]
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
            except (OSError, ValueError):  # the group has no limit, or does not show it here
                pass
            if group == base:
                break
    return left


def has_accelerator() -> bool:
    """Whether JAX may find a device with its own memory, judged by the installed packages. No backend is started."""
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
    return os.environ.get("JAX_PLATFORMS") != "cpu" and any(find_spec(name) for name in plugins)


def refuse_too_large(need: Needed) -> None:
    """Raise InputError if training would not fit into this process, with the needed and free bytes and the fix."""
    refuse(need.host, "of memory", available() + psutil.Process().memory_info().rss)


def refuse(parts: dict[str, int], what: str, there: int, fewer: str = "or fewer members") -> None:
    if sum(parts.values()) <= there:
        return
    largest = max(parts, key=lambda name: parts[name])
    change = f"a smaller --hidden-dim, {fewer}"
    if largest == "the batch in a step":
        change = "a smaller --batch-size, more --micro-batches, or a smaller --hidden-dim"
    raise InputError(
        f"this population needs about {in_gb(sum(parts.values()))} {what}, but only {in_gb(there)} are available "
        f"(the largest part is for {largest}: {in_gb(parts[largest])}): use {change}"
    )


def in_gb(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count < 1e12 else f"{count / 1e9:,.0f} GB"
