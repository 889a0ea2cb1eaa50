"""Members over devices: each device trains its share of every group, and none waits for another.

Shapes: P members of a group, N devices, S places of a group on one device, Q = N·S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae_jax.population import Group, State

AXIS = "members"


class Placement:
    """Who trains where. A place that no member needs holds one that counts as failed: nothing is computed for it."""

    def __init__(self, groups: Sequence[Group], devices: Sequence[jax.Device]):
        self.mesh = Mesh(np.array(devices), (AXIS,))
        self.members_Q = dealt(groups, len(devices))

    def place(self, trees: list) -> list:
        """The trees of all groups, [P, ...] each leaf, as [Q, ...] over the devices."""

        def placed(tree: Any, members_Q: np.ndarray) -> Any:
            tree = jax.tree.map(lambda leaf: np.asarray(leaf)[np.maximum(members_Q, 0)], tree)
            if isinstance(tree, State):
                tree = tree.replace(failed=np.where(members_Q < 0, np.int32(0), tree.failed))
            return tree

        shares = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.device_put([placed(*pair) for pair in zip(trees, self.members_Q, strict=True)], shares)

    def gather(self, trees: list) -> list:
        """A copy on the host, [P, ...] each leaf again."""
        pairs = zip(trees, self.members_Q, strict=True)
        return [jax.tree.map(lambda leaf, used_Q=of_Q >= 0: np.asarray(leaf)[used_Q], tree) for tree, of_Q in pairs]

    def everywhere(self, array: np.ndarray) -> jax.Array:
        return jax.device_put(array, NamedSharding(self.mesh, PartitionSpec()))


def dealt(groups: Sequence[Group], devices: int) -> list[np.ndarray]:
    """The members of each group in the order of places, −1 where none is; who is busiest so far gets one fewer."""
    load_N, found = np.zeros(devices), []
    for group in groups:
        count = len(group.members)
        places = -(-count // devices)
        share_N = np.full(devices, places)
        share_N[np.argsort(-load_N, kind="stable")[: places * devices - count]] -= 1
        load_N += share_N * group.signature.hidden_dim
        members_NxS = np.full((devices, places), -1)
        members_NxS[np.arange(places) < share_N[:, None]] = np.arange(count)
        found.append(members_NxS.ravel())
    return found
