"""Members over devices: each device holds and trains its share of the members, and none waits for another.

Shapes: P members of a group, N devices that hold a group, S places for its members on each, Q = N·S.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae_jax.training.population import Group, State

AXIS = "members"
ONE_PROGRAM_BYTES = 256 << 20  # that empty places may take, so that all groups are one program


class Share(NamedTuple):
    """On which devices a group lies, by their numbers, and how many of its members on each, in order."""

    devices: tuple[int, ...]
    counts: tuple[int, ...]


class Placement:
    """Who trains where. A place that no member needs holds a copy that counts as failed: nothing is computed for it."""

    def __init__(self, groups: Sequence[Group], devices: Sequence[jax.Device]):
        self.shares = shares_of(groups, len(devices))
        self.mesh = Mesh(np.array(devices), (AXIS,))

    def programs(self) -> list[tuple[Mesh, list[int]]]:
        """The groups, by their numbers, that lie on the same devices, and which devices these are."""
        numbers: dict[tuple[int, ...], list[int]] = {}
        for number, share in enumerate(self.shares):
            numbers.setdefault(share.devices, []).append(number)
        return [(self._mesh_of(devices), found) for devices, found in numbers.items()]

    def place(self, trees: Iterable) -> list:
        """The trees of all groups, [P, ...] each leaf, as [Q, ...] over the devices; one after another, if made so."""
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
            on = [jax.device_put(leaf[of_S], d) for of_S, d in zip(members_NxS, mesh.devices, strict=True)]
            return jax.make_array_from_single_device_arrays((members_NxS.size, *leaf.shape[1:]), sharding, on)

        placed = jax.tree.map(put, tree)
        return placed.replace(failed=jax.device_put(failed_Q, sharding)) if isinstance(tree, State) else placed

    def gather(self, trees: list) -> list:
        """A copy on the host, [P, ...] each leaf again."""
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
    """What is everywhere, as an array of the devices of one mesh alone; nothing is copied."""
    on = {shard.device: shard.data for shard in array.addressable_shards}
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_single_device_arrays(array.shape, sharding, [on[device] for device in mesh.devices])


def members_at(share: Share) -> np.ndarray:
    """The members of a group in the order of places [Q], −1 where none is."""
    counts_N = np.array(share.counts)
    places_NxS = np.arange(counts_N.max()) < counts_N[:, None]
    members_NxS = np.full(places_NxS.shape, -1)
    members_NxS[places_NxS] = np.arange(counts_N.sum())
    return members_NxS.ravel()


def shares_of(groups: Sequence[Group], devices: int, most_empty: int | None = None) -> list[Share]:
    """All groups on all devices, which is one program, unless the empty places would take more than `most_empty` bytes.

    Then a group lies on fewer devices. A group takes as many places on each of its devices, so it lies on no more of
    them than it has members, and on the number that leaves the fewest places empty, unless the last device would finish
    later for it. The widest groups come first, each on the devices that are least busy so far.
    """
    together = in_one_program(groups, devices)
    empty = sum(
        (max(share.counts) * devices - len(group.members)) * 24 * group.signature.hidden_dim * group.signature.d_model
        for group, share in zip(groups, together, strict=True)
    )
    if empty <= (ONE_PROGRAM_BYTES if most_empty is None else most_empty):
        return together
    compact, spread = (dealt(groups, devices, of_all) for of_all in (False, True))
    return min((compact, spread), key=lambda found: found[0])[1]


def in_one_program(groups: Sequence[Group], devices: int) -> list[Share]:
    """Every group on all devices; who is busiest so far gets one member fewer."""
    load_N, shares = np.zeros(devices), []
    for group in groups:
        places = -(-len(group.members) // devices)
        counts_N = np.full(devices, places)
        counts_N[np.argsort(-load_N, kind="stable")[: places * devices - len(group.members)]] -= 1
        load_N += counts_N * group.signature.hidden_dim
        shares.append(Share(tuple(range(devices)), tuple(map(int, counts_N))))
    return shares


def dealt(groups: Sequence[Group], devices: int, of_all: bool) -> tuple[float, list[Share]]:
    """(the load of the busiest device, the shares); `of_all`: every group lies on as many devices as it can."""
    load_N, shares = np.zeros(devices), {}
    for number, group in sorted(enumerate(groups), key=lambda pair: -pair[1].signature.hidden_dim):
        members = len(group.members)
        most, choices = min(members, devices), []
        for n in range(most if of_all else 1, most + 1):
            chosen_n = np.argsort(load_N, kind="stable")[:n]
            counts_n = members // n + (np.arange(n) < members % n)
            after_N = load_N.copy()
            after_N[chosen_n] += counts_n * group.signature.hidden_dim
            choices.append(
                ((after_N.max(), n * counts_n[0], -n), after_N, sorted(zip(chosen_n, counts_n, strict=True)))
            )
        _, load_N, pairs = min(choices, key=lambda choice: choice[0])
        shares[number] = Share(*(tuple(map(int, of)) for of in zip(*pairs, strict=True)))
    return load_N.max(), [shares[number] for number in range(len(groups))]
