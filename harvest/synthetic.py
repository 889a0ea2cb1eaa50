"""Synthetic activation rows made from known features, as a ground truth for SAEs. Imports neither torch nor jax.

    x = Σ_g a_g d_g + bias + noise

The model follows SynthSAEBench (Chanin & Garriga-Alonso 2026, arXiv 2602.14687; `sae_lens.synthetic`): more unit
directions d than dimensions, Zipf frequencies, a Gaussian copula of low rank, and trees in which a child fires only if
its parent does. There are two differences. The requested frequencies are reached exactly, even in trees. Magnitudes are
folded normals, so that a feature that fires is never zero.

Shapes: G true features, D width, N rows, R correlation factors, L levels of the trees.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from math import inf, isfinite
from pathlib import Path
from statistics import NormalDist

import numpy as np

from harvest.capture import disk_trouble_said, one_at_a_time
from harvest.errors import InputError
from harvest.files import read_arrays, write_arrays
from harvest.messages import Progress, ignore
from harvest.request import STORE_DTYPES
from harvest.store import AGAIN, FORMAT, SPLITS, ActivationStore
from harvest.store_writer import StoreWriter

SHARD_ROWS, BLOCK_ROWS = 1 << 15, 1 << 10  # rows depend on these numbers and the seed
FEATURES = "features.npz"
WORLD_STREAM = len(SPLITS)  # random stream of what all rows share; rows use the number of their split


@dataclass(frozen=True)
class SyntheticRequest:
    """The request for synthetic rows. Raises InputError for invalid values.

    Features are numbered from the most to the least frequent; `p_max`, `p_min` and `exponent` define their frequencies.
    The first `n_roots` features are the roots of trees with `branching` children per node and `depth` levels below the
    root. The other features are in no tree. If `exclusive`, at most one child of a parent fires.
    Magnitudes are |N(mean, std²)|, the noise has standard deviation `noise_std` per dimension, and the bias has norm
    `bias_norm`.
    """

    n_features: int = 512
    d_model: int = 256
    orthogonal_steps: int = 100
    p_max: float = 0.4
    p_min: float = 0.002
    exponent: float = 0.5
    correlation_rank: int = 25
    correlation_scale: float = 0.1
    n_roots: int = 64
    branching: int = 2
    depth: int = 2
    exclusive: bool = True
    magnitude_mean: float = 1.0
    magnitude_std: float = 0.25
    noise_std: float = 0.02
    bias_norm: float = 1.0
    seed: int = 0
    train_rows: int = 300_000
    held_out_rows: int = 30_000
    store_dtype: str = "float16"

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise InputError(f"{name} {getattr(self, name)}: must be {allowed}")

        for name in ("n_features", "d_model", "correlation_rank", "branching", "train_rows", "held_out_rows"):
            need(getattr(self, name) >= 1, name, "1 or more")
        for name in ("orthogonal_steps", "depth", "seed"):
            need(getattr(self, name) >= 0, name, "0 or more")
        need(0 <= self.n_roots <= self.n_features, "n_roots", f"0 to n_features ({self.n_features})")
        need(0 < self.p_max <= 1, "p_max", "over 0, at most 1")
        need(0 < self.p_min <= self.p_max, "p_min", f"over 0, at most p_max ({self.p_max})")
        for name in ("exponent", "magnitude_mean"):
            need(isfinite(getattr(self, name)) and getattr(self, name) > 0, name, "a positive number")
        for name in ("correlation_scale", "magnitude_std", "noise_std", "bias_norm"):
            need(isfinite(getattr(self, name)) and getattr(self, name) >= 0, name, "0 or a positive number")
        need(self.store_dtype in STORE_DTYPES, "store_dtype", f"one of {', '.join(STORE_DTYPES)}")
        if self.exclusive:
            p_G, (parents_G, _) = firing_probabilities(self), trees(self)
            kept_G = parents_G >= 0
            asked_G = np.bincount(parents_G[kept_G], p_G[kept_G], minlength=self.n_features)
            worst = int(np.argmax(asked_G - p_G))
            if asked_G[worst] > p_G[worst] * (1 + 1e-9):
                raise InputError(
                    f"branching {self.branching}: the exclusive children of feature {worst} would fire on "
                    f"{asked_G[worst]:.4f} of rows, but their parent only on {p_G[worst]:.4f}: "
                    "use a smaller branching, a larger n_roots or exclusive=False"
                )


@dataclass(frozen=True)
class Truth:
    """The true features of a store.

    `fired` tells which features fire on each held-out row, in packed bits. directions_GxD have norm 1. probabilities_G
    is the share of rows on which each feature fires. parents_G is -1 for features without a parent. The copula's
    correlation of two features of one level is the product of their rows in factors_GxR.
    """

    directions_GxD: np.ndarray
    probabilities_G: np.ndarray
    parents_G: np.ndarray
    bias_D: np.ndarray
    factors_GxR: np.ndarray
    fired: np.ndarray

    @classmethod
    def load(cls, store: ActivationStore) -> Truth:
        """Read the true features of a store. Raises InputError if the store was not made by `synthesize`."""
        path = store.directory / FEATURES
        if not path.exists():
            raise InputError(f"{store.directory} has no {FEATURES}: use a store made by synthesize")
        return cls(**read_arrays(path, AGAIN))

    def fires(self, start: int, stop: int) -> np.ndarray:
        """Which features fire on held-out rows [start, stop), bool [N, G]."""
        return np.unpackbits(self.fired[start:stop], axis=1, count=len(self.probabilities_G)).astype(bool)


def synthesize(request: SyntheticRequest, cache_dir: Path, on_progress: Progress = ignore) -> ActivationStore:
    """The store of a request, made if needed, with `features.npz` beside its manifest.

    A shard depends only on the request, the split and its number. Raises InputError if rows cannot be stored.
    """
    directory = Path(cache_dir) / "activations" / store_name(request)
    if not (directory / "manifest.json").exists():
        with disk_trouble_said(directory.parent), one_at_a_time(directory, ignore):
            if not (directory / "manifest.json").exists():  # another process may have finished it
                _fill(directory, request, on_progress)
    return ActivationStore(directory)


def store_name(request: SyntheticRequest) -> str:
    facts = {"synthetic": asdict(request), "format": FORMAT, "shard_rows": SHARD_ROWS, "block_rows": BLOCK_ROWS}
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=10).hexdigest()


def firing_probabilities(request: SyntheticRequest) -> np.ndarray:
    """Decreasing frequencies [G] by Zipf's law over ranks, scaled to the range from p_max to p_min."""
    law_G = np.arange(1, request.n_features + 1.0) ** -request.exponent
    if request.n_features == 1:
        return np.array([request.p_max])
    return request.p_min + (request.p_max - request.p_min) * (law_G - law_G[-1]) / (law_G[0] - law_G[-1])


def trees(request: SyntheticRequest) -> tuple[np.ndarray, np.ndarray]:
    """(parent [G], -1 for none; level [G], 0 for roots and features outside of trees), numbered level by level.

    A parent is therefore never rarer than its child, and the children of one parent have consecutive numbers.
    """
    parents_G, levels_G = np.full(request.n_features, -1), np.zeros(request.n_features, np.int64)
    first, stop = 0, request.n_roots
    for level in range(1, request.depth + 1):
        end = min(request.n_features, stop + (stop - first) * request.branching)
        parents_G[stop:end] = first + np.arange(end - stop) // request.branching
        levels_G[stop:end] = level
        first, stop = stop, end
    return parents_G, levels_G


class World:
    """The quantities that all rows of a request share, and the generation of rows."""

    def __init__(self, request: SyntheticRequest):
        self.request = request
        rng = _stream(request.seed, WORLD_STREAM)
        self.probabilities_G = firing_probabilities(request)
        self.parents_G, self.levels_G = trees(request)
        self.directions_GxD = spread_directions(rng, request)
        bias_D = rng.standard_normal(request.d_model)
        self.bias_D = (bias_D * (request.bias_norm / np.linalg.norm(bias_D))).astype(np.float32)
        factors_GxR = rng.standard_normal((request.n_features, request.correlation_rank)) * request.correlation_scale
        norms_G = np.linalg.norm(factors_GxR, axis=1, keepdims=True)
        self.factors_GxR = factors_GxR * np.minimum(1, 0.99**0.5 / np.maximum(norms_G, 1e-30))

    @cached_property
    def loadings_RLxG(self) -> np.ndarray:
        # Each level has separate factors. If the Gaussian of a child were correlated with those of its ancestors, the
        # child would not fire on p_child / p_parent of the rows of its parent.
        n, levels = self.request.n_features, self.levels_G.max() + 1
        loadings_GxLxR = np.zeros((n, levels, self.request.correlation_rank), np.float32)
        loadings_GxLxR[np.arange(n), self.levels_G] = self.factors_GxR
        return np.ascontiguousarray(loadings_GxLxR.reshape(n, -1).T)

    @cached_property
    def gates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source [G], low [G], high [G]): if its parent fires, g fires iff low_g < u[source_g] ≤ high_g.

        Exclusive siblings share one Gaussian, and each has a separate interval of it.
        """
        p_G = self.probabilities_G
        share_G = np.where(self.parents_G >= 0, p_G / p_G[self.parents_G], p_G)
        source_G, above_G = np.arange(len(p_G)), np.zeros(len(p_G))
        if self.request.exclusive:
            for g in np.flatnonzero((self.parents_G[1:] >= 0) & (self.parents_G[1:] == self.parents_G[:-1])) + 1:
                source_G[g], above_G[g] = source_G[g - 1], above_G[g - 1] + share_G[g - 1]
        high_G, low_G = (
            np.array([_normal_quantile(p) for p in probabilities_G], np.float32)
            for probabilities_G in (1 - above_G, 1 - (above_G + share_G))  # adjacent intervals share an edge exactly
        )
        return source_G, low_G, high_G

    def fires(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """Which features fire on new rows, bool [N, G]."""
        source_G, low_G, high_G = self.gates
        own_G = np.sqrt(1 - np.square(self.factors_GxR).sum(1)).astype(np.float32)
        u_NxG = rng.standard_normal((rows, len(self.loadings_RLxG)), np.float32) @ self.loadings_RLxG
        u_NxG += own_G * rng.standard_normal(u_NxG.shape, np.float32)
        if self.request.exclusive:
            u_NxG = u_NxG[:, source_G]
        fires_NxG = (u_NxG > low_G) & (u_NxG <= high_G)
        for level in range(1, self.levels_G.max() + 1):
            children = np.flatnonzero(self.levels_G == level)
            fires_NxG[:, children] &= fires_NxG[:, self.parents_G[children]]
        return fires_NxG

    def shard(self, split: str, index: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows [N, D], packed bits [N, G/8] of the features that fire)."""
        request = self.request
        rng = _stream(request.seed, SPLITS.index(split), index)
        rows_NxD, fired = np.empty((rows, request.d_model), np.float32), []
        for start in range(0, rows, BLOCK_ROWS):
            out_NxD = rows_NxD[start : start + BLOCK_ROWS]
            fires_NxG = self.fires(rng, len(out_NxD))
            a_NxG = np.zeros(fires_NxG.shape, np.float32)
            normal = rng.standard_normal(np.count_nonzero(fires_NxG), np.float32)
            a_NxG[fires_NxG] = np.abs(request.magnitude_mean + request.magnitude_std * normal)
            x_NxD = a_NxG @ self.directions_GxD + self.bias_D
            x_NxD += request.noise_std * rng.standard_normal(x_NxD.shape, np.float32)
            out_NxD[:] = x_NxD
            fired.append(np.packbits(fires_NxG, axis=1))
        return rows_NxD, np.concatenate(fired)


def spread_directions(rng: np.random.Generator, request: SyntheticRequest) -> np.ndarray:
    """Random unit directions [G, D], moved apart by gradient descent on Σ_{i≠j} (d_i · d_j)²."""
    d_GxD = _unit(rng.standard_normal((request.n_features, request.d_model)))
    rate = 0.1 / (1 + (request.n_features / request.d_model) ** 0.5) ** 2  # from the largest eigenvalue of d dᵀ
    for _ in range(request.orthogonal_steps):
        d_GxD = _unit(d_GxD - rate * (d_GxD @ (d_GxD.T @ d_GxD) - d_GxD))
    return d_GxD.astype(np.float32)


def _fill(directory: Path, request: SyntheticRequest, on_progress: Progress) -> None:
    world, done = World(request), 0
    fired: list[np.ndarray] = []
    writer = StoreWriter(directory, _description(request))
    total = request.train_rows + request.held_out_rows
    for split, first, count in (
        ("train", 0, request.train_rows),
        ("held_out", request.train_rows, request.held_out_rows),
    ):
        for index, start in enumerate(range(0, count, SHARD_ROWS)):
            rows = min(SHARD_ROWS, count - start)
            numbers_Nx1 = first + start + np.arange(rows, dtype=np.int32)[:, None]
            if split == "held_out" or not writer.has_shard(split, index, numbers_Nx1):
                rows_NxD, bits = world.shard(split, index, rows)
                writer.add_shard(split, index, rows_NxD, numbers_Nx1, numbers_Nx1[:, 0])
                if split == "held_out":
                    fired.append(bits)
            done += rows
            on_progress("harvest", done, total)
    truth = Truth(
        world.directions_GxD,
        world.probabilities_G,
        world.parents_G,
        world.bias_D,
        world.factors_GxR,
        np.concatenate(fired),
    )
    write_arrays(directory / FEATURES, vars(truth))
    writer.finish()


def _description(request: SyntheticRequest) -> dict:
    """Facts for the manifest. Each row is a document with one window of one token, the number of the row."""
    source = {"asked": "synthetic", "location": "synthetic", "fell_back": False, "fingerprint": "synthetic"}
    rows = request.train_rows + request.held_out_rows
    return {
        "model": source,
        "dataset": source,
        "weights_hash": "synthetic",
        "tokenizer_hash": "synthetic",
        "windows_hash": store_name(request),
        "hook": "synthetic",
        "hook_name": "synthetic",
        "layer": 0,
        "seq_len": 1,
        "keep_first_position": True,
        "dtype": request.store_dtype,
        "d_model": request.d_model,
        "n_samples": rows,
        "n_samples_got": rows,
        "synthetic": asdict(request),
        "versions": {"numpy": np.__version__},
    }


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _normal_quantile(p: float) -> float:
    """Φ⁻¹(p), infinite near 0 and 1, because sums of shares may differ from these by rounding."""
    return NormalDist().inv_cdf(p) if 1e-12 < p < 1 - 1e-12 else -inf if p < 0.5 else inf


def _unit(x_GxD: np.ndarray) -> np.ndarray:
    return x_GxD / np.linalg.norm(x_GxD, axis=1, keepdims=True)
