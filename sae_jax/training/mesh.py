"""The distribution of members over devices. Each device trains its share of the members independently.

Shapes: P members of a group, N devices that hold a group, S slots per device for its members, Q = N·S slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae_jax.training.population import Group, State

AXIS = "members"
ONE_PROGRAM_BYTES = 256 << 20  # largest total size of padding slots for which all groups are one program


class Share(NamedTuple):
    """The numbers of the devices that hold a group, and how many of its members each device holds, in order."""

    devices: tuple[int, ...]
    counts: tuple[int, ...]


class Placement:
    """The devices of all members. Padding slots hold a member marked as failed; nothing is computed for them."""

    def __init__(self, groups: Sequence[Group], devices: Sequence[jax.Device]):
        self.shares = shares_of(groups, len(devices))
        self.mesh = Mesh(np.array(devices), (AXIS,))

    def programs(self) -> list[tuple[Mesh, list[int]]]:
        """(mesh, numbers of the groups on it) of each set of devices."""
        numbers: dict[tuple[int, ...], list[int]] = {}
        for number, share in enumerate(self.shares):
            numbers.setdefault(share.devices, []).append(number)
        return [(self._mesh_of(devices), groups) for devices, groups in numbers.items()]

    def place(self, trees: Iterable) -> list:
        """Distribute the trees of all groups: leaves [P, ...] become [Q, ...] over the devices. `trees` may be lazy."""
        return [self._placed(tree, share) for tree, share in zip(trees, self.shares, strict=True)]

    def _placed(self, tree: Any, share: Share) -> Any:
        members_Q = members_at(share)
        tree = jax.tree.map(np.asarray, tree)
        if isinstance(tree, State):
            failed_Q = np.where(members_Q < 0, np.int32(0), tree.failed[members_Q])
        members_NxS = np.maximum(members_Q, 0).reshape(len(share.devices), -1)
        mesh = self._mesh_of(share.devices)
        sharding = NamedSharding(mesh, PartitionSpec(AXIS))

        def put(leaf: np.ndarray) -> jax.Array:
            shards = [jax.device_put(leaf[p_S], device) for p_S, device in zip(members_NxS, mesh.devices, strict=True)]
            return jax.make_array_from_single_device_arrays((members_NxS.size, *leaf.shape[1:]), sharding, shards)

        placed = jax.tree.map(put, tree)
        return placed.replace(failed=jax.device_put(failed_Q, sharding)) if isinstance(tree, State) else placed

    def gather(self, trees: list) -> list:
        """A copy of the trees on the host, with leaves [P, ...] again."""
        return [self.gather_group(number, tree) for number, tree in enumerate(trees)]

    def gather_group(self, number: int, tree: Any) -> Any:
        counts = self.shares[number].counts

        def gathered(leaf: jax.Array) -> np.ndarray:
            shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            return np.concatenate([np.asarray(shard.data)[:n] for shard, n in zip(shards, counts, strict=True)])

        return jax.tree.map(gathered, tree)

    def everywhere(self, array: np.ndarray) -> jax.Array:
        return jax.device_put(array, NamedSharding(self.mesh, PartitionSpec()))

    def _mesh_of(self, devices: tuple[int, ...]) -> Mesh:
        return Mesh(self.mesh.devices[list(devices)], (AXIS,))


def on_mesh(array: jax.Array, mesh: Mesh) -> jax.Array:
    """A replicated array as an array on the devices of one mesh only. Nothing is copied."""
    shard_on = {shard.device: shard.data for shard in array.addressable_shards}
    sharding = NamedSharding(mesh, PartitionSpec())
    shards = [shard_on[device] for device in mesh.devices]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)


def members_at(share: Share) -> np.ndarray:
    """The member of a group in each slot [Q], −1 for padding slots."""
    counts_N = np.array(share.counts)
    used_NxS = np.arange(counts_N.max()) < counts_N[:, None]
    members_NxS = np.full(used_NxS.shape, -1)
    members_NxS[used_NxS] = np.arange(counts_N.sum())
    return members_NxS.ravel()


def shares_of(groups: Sequence[Group], devices: int, most_empty: int | None = None) -> list[Share]:
    """The shares of all groups. All are on all devices, as one program, if their padding slots take little memory.

    If the padding slots would take more than `most_empty` bytes, groups are put on fewer devices instead. Since a group
    has equally many slots on each of its devices, a group is then on no more devices than it has members. The number
    of devices is the one with the fewest padding slots among those for which the busiest device finishes first. The
    widest groups are assigned first, each to the devices with the least load so far.
    """
    together = in_one_program(groups, devices)
    empty = sum(
        (max(share.counts) * devices - len(group.members)) * 24 * group.signature.hidden_dim * group.signature.d_model
        for group, share in zip(groups, together, strict=True)
    )
    if empty <= (ONE_PROGRAM_BYTES if most_empty is None else most_empty):
        return together
    compact, spread = (assign_widest_first(groups, devices, on_most) for on_most in (False, True))
    return min((compact, spread), key=lambda assignment: assignment[0])[1]


def in_one_program(groups: Sequence[Group], devices: int) -> list[Share]:
    """The shares if every group is on all devices. The devices with the most load so far get one member fewer."""
    load_N, shares = np.zeros(devices), []
    for group in groups:
        slots = -(-len(group.members) // devices)
        counts_N = np.full(devices, slots)
        counts_N[np.argsort(-load_N, kind="stable")[: slots * devices - len(group.members)]] -= 1
        load_N += counts_N * group.signature.hidden_dim
        shares.append(Share(tuple(range(devices)), tuple(map(int, counts_N))))
    return shares


def assign_widest_first(groups: Sequence[Group], devices: int, on_most: bool) -> tuple[float, list[Share]]:
    """(load of the busiest device, shares). With `on_most`, every group is on as many devices as possible."""
    load_N, shares = np.zeros(devices), {}
    for number, group in sorted(enumerate(groups), key=lambda pair: -pair[1].signature.hidden_dim):
        members = len(group.members)
        most, choices = min(members, devices), []
        for n in range(most if on_most else 1, most + 1):
            chosen_n = np.argsort(load_N, kind="stable")[:n]
            counts_n = members // n + (np.arange(n) < members % n)
            after_N = load_N.copy()
            after_N[chosen_n] += counts_n * group.signature.hidden_dim
            choices.append(
                ((after_N.max(), n * counts_n[0], -n), after_N, sorted(zip(chosen_n, counts_n, strict=True)))
            )
        _, load_N, pairs = min(choices, key=lambda choice: choice[0])
        shares[number] = Share(*(tuple(map(int, numbers)) for numbers in zip(*pairs, strict=True)))
    return load_N.max(), [shares[number] for number in range(len(groups))]
