"""The layout of a population on a mesh of devices with three axes: members, data and features.

    members   each position of the axis holds its share of the members, and trains them without the other positions
    data      the rows of a batch are split, and gradients are summed over the axis
    features  weights, moments and counts are split over F, and reconstructions are summed over the axis

Shapes: P members of a group, S slots per position for its members, Q slots of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae_jax.training.axes import Axes
from sae_jax.training.population import Group, State
from sae_jax.training.processes import on_host
from sae_jax.training.shares import Share, members_at, shares_of

MEMBERS, DATA, FEATURES = Axes._fields


class Placement:
    """The devices of all members. Padding slots hold a member marked as failed; nothing is computed for them."""

    def __init__(self, groups: Sequence[Group], devices: Sequence[jax.Device], axes: Axes | None = None):
        self.axes = axes or Axes(members=len(devices))
        self.shares = shares_of(groups, self.axes.members)
        self.widths = [group.signature.hidden_dim for group in groups]
        self.mesh = Mesh(np.array(devices[: self.axes.devices]).reshape(self.axes), Axes._fields)

    def programs(self) -> list[tuple[Mesh, list[int]]]:
        """(mesh, numbers of the groups on it) of each set of positions."""
        numbers: dict[tuple[int, ...], list[int]] = {}
        for number, share in enumerate(self.shares):
            numbers.setdefault(share.positions, []).append(number)
        return [(self._mesh_of(positions), groups) for positions, groups in numbers.items()]

    def place(self, trees: Iterable) -> list:
        """Distribute the trees of all groups: leaves [P, ...] become [Q, ...] on the mesh. `trees` may be lazy."""
        return [self._placed(*of) for of in zip(trees, self.shares, self.widths, strict=True)]

    def _placed(self, tree: Any, share: Share, hidden_dim: int) -> Any:
        mesh, members_Q = self._mesh_of(share.positions), members_at(share)
        of_Q = np.maximum(members_Q, 0)

        def put(leaf: np.ndarray) -> jax.Array:
            sharding = NamedSharding(mesh, PartitionSpec(MEMBERS, *features_axis(leaf.shape[1:], hidden_dim)))

            def part(index: Any) -> np.ndarray:
                return leaf[of_Q[index[0]]][:, *index[1:]]

            return jax.make_array_from_callback((len(of_Q), *leaf.shape[1:]), sharding, part, dtype=leaf.dtype)

        placed = jax.tree.map(lambda leaf: put(np.asarray(leaf)), tree)
        if isinstance(tree, State):
            failed_Q = np.where(members_Q < 0, np.int32(0), np.asarray(tree.failed)[of_Q])
            sharding = placed.failed.sharding
            placed = placed.replace(
                failed=jax.make_array_from_callback(of_Q.shape, sharding, failed_Q.__getitem__, dtype=failed_Q.dtype)
            )
        return placed

    def gather(self, trees: list) -> list:
        """A copy of the trees on the host, with leaves [P, ...] again."""
        return [self.gather_group(number, tree) for number, tree in enumerate(trees)]

    def gather_group(self, number: int, tree: Any) -> Any:
        used_Q = members_at(self.shares[number]) >= 0
        return jax.tree.map(lambda leaf: on_host(leaf)[used_Q], tree)

    def everywhere(self, array: np.ndarray) -> jax.Array:
        return self._given(array, PartitionSpec())

    def rows(self, raw_LxSxBxD: np.ndarray) -> jax.Array:
        """A block of batches, whose rows are split over the data axis."""
        return self._given(raw_LxSxBxD, PartitionSpec(None, None, DATA))

    def _given(self, array: np.ndarray, spec: PartitionSpec) -> jax.Array:
        return jax.make_array_from_callback(
            array.shape, NamedSharding(self.mesh, spec), array.__getitem__, dtype=array.dtype
        )

    def _mesh_of(self, positions: tuple[int, ...]) -> Mesh:
        return Mesh(self.mesh.devices[list(positions)], Axes._fields)


def features_axis(shape: tuple[int, ...], hidden_dim: int) -> tuple[str, ...]:
    """The mesh axis of the first axis of a member's array: its features are split, everything else is not."""
    return (FEATURES,) if shape[:1] == (hidden_dim,) else ()


def split_over_features(tree: Any, hidden_dim: int) -> Any:
    """Keep a member's arrays in the layout in which `Placement.place` put them."""

    def keep(leaf: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*features_axis(leaf.shape, hidden_dim)))

    return jax.tree.map(keep, tree)


def on_mesh(array: jax.Array, mesh: Mesh) -> jax.Array:
    """An array that no position splits, as an array on some positions only. Nothing is copied."""
    shard_on = {shard.device: shard.data for shard in array.addressable_shards}
    assert isinstance(array.sharding, NamedSharding)
    sharding = NamedSharding(mesh, array.sharding.spec)
    shards = [shard_on[device] for device in mesh.devices.flat if device in shard_on]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, shards, dtype=array.dtype)
