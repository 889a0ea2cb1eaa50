"""Feature splitting (Bricken et al. 2023): a tree of features over members that differ only in their width.

The parent of a feature is the feature with the highest decoder cosine in the next narrower dictionary, if that cosine
is at least PARENT. Several features may have the same parent.

Shapes: F features of a member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from analysis.comparison.matching import FLOOR, Decoder, cosines
from analysis.geometry import random_like
from analysis.runs.families import alike
from harvest.errors import InputError
from harvest.files import write_arrays, write_json

PARENT = 0.5


@dataclass(frozen=True)
class Step:
    """The step from one width to the next, over living features only.

    children: {number of children: how many features of the narrower dictionary have that many}. A feature without
    children is lost, one with one child is kept, and one with several is split.
    new: number of features of the wider dictionary without a parent.
    chance: share of random directions, with the covariance of the wider dictionary, that have a parent.
    """

    narrow: int
    wide: int
    children: dict[int, int]
    new: int
    chance: float


@dataclass(frozen=True)
class Splitting:
    """The tree of a family of members, narrowest first.

    parent_F, cosine_F: of each member's features; −1 and 0 for features without a parent.
    trees: (index of the member, feature, number of leaves) of features without a parent, most leaves first.
    """

    members: tuple[str, ...]
    widths: tuple[int, ...]
    alive: tuple[int, ...]
    threshold: float
    steps: tuple[Step, ...]
    trees: tuple[tuple[int, int, int], ...]
    parent_F: tuple[np.ndarray, ...]
    cosine_F: tuple[np.ndarray, ...]


def families(decoders: Mapping[str, Decoder]) -> list[list[str]]:
    """Groups of two or more members that differ only in `hidden_dim`, narrowest first."""
    same = alike({name: decoder.settings for name, decoder in decoders.items()}, but_for="hidden_dim")
    return [sorted(names, key=lambda name: len(decoders[name].alive_F)) for names in same if len(names) > 1]


def compute_splitting(decoders: Mapping[str, Decoder], threshold: float = PARENT, seed: int = 0) -> Splitting:
    """How features split from each member of a family to the next wider one. `decoders` are ordered by width.

    Raises InputError for fewer than two members.
    """
    if len(decoders) < 2:
        raise InputError("feature splitting needs members of several widths: train with --hidden-dim 512 1024 2048")
    if not FLOOR <= threshold <= 1:
        raise InputError(f"threshold {threshold}: must be between {FLOOR} and 1")
    ids, rng, steps = list(decoders), np.random.default_rng(seed), []
    width = len(decoders[ids[0]].alive_F)
    parents, cosine = [np.full(width, -1)], [np.zeros(width, np.float32)]
    for narrow, wide in zip(ids, ids[1:], strict=False):
        wide_FxD, narrow_GxD = decoders[wide].directions, decoders[narrow].directions
        living_F, living_G = (np.flatnonzero(decoders[name].alive_F) for name in (wide, narrow))
        similarity = cosines(wide_FxD, narrow_GxD)
        has = similarity.best_F >= threshold
        child, parent = living_F[has], living_G[similarity.pairs_FxG[has].argmax(axis=1)]
        width = len(decoders[wide].alive_F)
        for levels, empty, values in ((parents, -1, parent), (cosine, np.float32(0), similarity.best_F[has])):
            levels.append(np.full(width, empty))
            levels[-1][child] = values
        sizes = np.bincount(np.bincount(parent, minlength=len(decoders[narrow].alive_F))[living_G])
        random_FxD = random_like(wide_FxD, len(wide_FxD), rng)
        steps.append(
            Step(
                narrow=len(decoders[narrow].alive_F),
                wide=width,
                children={n: int(count) for n, count in enumerate(sizes) if count},
                new=int((~has).sum()),
                chance=float((cosines(random_FxD, narrow_GxD).best_F >= threshold).mean()),
            )
        )
    alive = [d.alive_F for d in decoders.values()]
    return Splitting(
        members=tuple(ids),
        widths=tuple(map(len, alive)),
        alive=tuple(int(a.sum()) for a in alive),
        threshold=threshold,
        steps=tuple(steps),
        trees=trees_of(parents, alive),
        parent_F=tuple(parents),
        cosine_F=tuple(cosine),
    )


def trees_of(parents: Sequence[np.ndarray], alive: Sequence[np.ndarray]) -> tuple[tuple[int, int, int], ...]:
    """(level, root, number of leaves) of each tree, most leaves first. A tree has more than one feature."""
    trees, below_F = [], np.zeros(len(parents[-1]), np.int64)
    for level in range(len(parents) - 1, -1, -1):
        parent_F, leaves_F = parents[level], np.maximum(below_F, 1)
        roots = np.flatnonzero((parent_F < 0) & alive[level] & (below_F > 0))
        trees += [(level, int(root), int(leaves_F[root])) for root in roots]
        if level:
            below_F = np.zeros(len(parents[level - 1]), np.int64)
            np.add.at(below_F, parent_F[parent_F >= 0], leaves_F[parent_F >= 0])
    return tuple(sorted(trees, key=lambda tree: (-tree[2], tree)))


def write_splitting(splitting: Splitting, folder: Path) -> list[Path]:
    """Write splitting-ID.json (numbers, 100 largest trees) and .npz (parents). ID is that of the widest member."""
    stem = folder / f"splitting-{splitting.members[-1]}"
    arrays = {
        f"{name}/{what}": values[level]
        for level, name in enumerate(splitting.members)
        for what, values in vars(splitting).items()
        if what.endswith("_F")
    }
    record = {name: value for name, value in asdict(splitting).items() if not name.endswith("_F")}
    write_json(stem.with_name(stem.name + ".json"), {"schema": 1, **record, "trees": splitting.trees[:100]})
    write_arrays(stem.with_name(stem.name + ".npz"), arrays, compressed=True)
    return [stem.with_name(stem.name + suffix) for suffix in (".json", ".npz")]
