"""The division of members among positions of a mesh, so that the busiest position finishes as early as possible.

A position is one device, or several that train each of its members together. Shapes: N positions that hold a group, S
slots per position for its members, Q = N·S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_jax.training.population import Group

ONE_PROGRAM_BYTES = 256 << 20  # largest total size of padding slots for which all groups are one program


class Share(NamedTuple):
    """The numbers of the positions that hold a group, and how many of its members each position holds, in order."""

    positions: tuple[int, ...]
    counts: tuple[int, ...]


def members_at(share: Share) -> np.ndarray:
    """The member of a group in each slot [Q], −1 for padding slots."""
    counts_N = np.array(share.counts)
    used_NxS = np.arange(counts_N.max()) < counts_N[:, None]
    members_NxS = np.full(used_NxS.shape, -1)
    members_NxS[used_NxS] = np.arange(counts_N.sum())
    return members_NxS.ravel()


def shares_of(groups: Sequence[Group], positions: int, most_empty: int | None = None) -> list[Share]:
    """The shares of all groups. All are on all positions, as one program, if their padding slots take little memory.

    If the padding slots would take more than `most_empty` bytes, groups are put on fewer positions instead. Since a
    group has equally many slots on each of its positions, it is then on no more positions than it has members. The
    number of positions is the one with the fewest padding slots among those for which the busiest one finishes first.
    The widest groups are assigned first, each to the positions with the least load so far.
    """
    together = in_one_program(groups, positions)
    empty = sum(
        (max(share.counts) * positions - len(group.members)) * 24 * group.signature.hidden_dim * group.signature.d_model
        for group, share in zip(groups, together, strict=True)
    )
    if empty <= (ONE_PROGRAM_BYTES if most_empty is None else most_empty):
        return together
    compact, spread = (assign_widest_first(groups, positions, on_most) for on_most in (False, True))
    return min((compact, spread), key=lambda assignment: assignment[0])[1]


def in_one_program(groups: Sequence[Group], positions: int) -> list[Share]:
    """The shares if every group is on all positions. The positions with the most load so far get one member fewer."""
    load_N, shares = np.zeros(positions), []
    for group in groups:
        slots = -(-len(group.members) // positions)
        counts_N = np.full(positions, slots)
        counts_N[np.argsort(-load_N, kind="stable")[: slots * positions - len(group.members)]] -= 1
        load_N += counts_N * group.signature.hidden_dim
        shares.append(Share(tuple(range(positions)), tuple(map(int, counts_N))))
    return shares


def assign_widest_first(groups: Sequence[Group], positions: int, on_most: bool) -> tuple[float, list[Share]]:
    """(load of the busiest position, shares). With `on_most`, every group is on as many positions as possible."""
    load_N, shares = np.zeros(positions), {}
    for number, group in sorted(enumerate(groups), key=lambda pair: -pair[1].signature.hidden_dim):
        members = len(group.members)
        most, choices = min(members, positions), []
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
