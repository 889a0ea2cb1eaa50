"""Several processes, on one machine or on several, that train one population together.

Process 0 alone writes the run directory. All processes run the same programs in the same order, so whatever one of them
would decide by itself (a clock, a signal, what is on the disk) is decided here for all. Without `jax.distributed`
there is one process, and everything here returns at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from harvest.team import ALONE, Team

PIECE = 1 << 24  # numbers that are summed over the processes at a time


def several() -> bool:
    return jax.process_count() > 1


def is_first() -> bool:
    """Return whether this is process 0, which writes the files of the run."""
    return jax.process_index() == 0


def devices(count: int) -> list[jax.Device]:
    """So many devices, as evenly from all processes as can be, with those of a process side by side."""
    most, of_process = -(-count // jax.process_count()), defaultdict(list)
    for device in jax.devices():
        of_process[device.process_index].append(device)
    chosen = [device for own in of_process.values() for device in own[:most]]
    return chosen[:count] if len(chosen) >= count else jax.devices()[:count]


def agreed(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set in any process."""
    if not several():
        return flags
    return tuple(bool(count) for count in total(np.array([*flags, True], np.int32))[:-1])


def from_first(tree: Any, like: Any) -> Any:
    """The arrays of process 0, on the host of every process. The others give None, and all give the shapes `like`."""
    if not several():
        return tree
    leaves, form = jax.tree.flatten(like)
    given = jax.tree.leaves(tree) if is_first() else [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(form, map(total, given))


def on_host(array: jax.Array) -> np.ndarray:
    """A global array on the host of every process."""
    if not several():
        return np.asarray(array)
    part = np.zeros(array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            part[shard.index] = shard.data
    return total(part)


def team() -> Team:
    """The processes of `jax.distributed`, which exchange texts as arrays."""

    def exchange(text: str) -> list[str]:
        given = np.frombuffer(text.encode(), np.uint8)
        longest = int(multihost_utils.process_allgather(np.int32(len(given))).max())
        padded = np.frombuffer(text.encode().ljust(longest), np.uint8)  # JSON may end with spaces
        everywhere = np.asarray(multihost_utils.process_allgather(padded)).reshape(jax.process_count(), -1)
        return [other.tobytes().decode() for other in everywhere]

    return Team(jax.process_index(), jax.process_count(), exchange) if several() else ALONE


def part() -> None:
    """End the work that the processes do together: afterwards, none needs another one."""
    if several():
        agreed()  # all have come here, so that nobody waits long
        jax.distributed.shutdown()


def total(part: np.ndarray) -> np.ndarray:
    """The sum over the processes of arrays of which at most one is not zero at each place, with the same bits.

    It is computed in pieces, so that no device has to hold all of a large array.
    """
    (mesh, add), whole = adder(), np.empty(part.size, np.int32)
    bits = part.reshape(-1).view(np.int32)
    for start in range(0, part.size, PIECE):
        piece = bits[None, start : start + PIECE]
        summed = add(multihost_utils.host_local_array_to_global_array(piece, mesh, PartitionSpec("processes")))
        whole[start : start + PIECE] = summed.addressable_data(0)
    return whole.view(part.dtype).reshape(part.shape)


@cache
def adder() -> tuple[Mesh, Callable[[jax.Array], jax.Array]]:
    """One device of each process, and the function that sums over them."""
    mesh = Mesh(np.array(devices(jax.process_count())), ("processes",))
    return mesh, jax.jit(lambda parts: parts.sum(0), out_shardings=NamedSharding(mesh, PartitionSpec()))
