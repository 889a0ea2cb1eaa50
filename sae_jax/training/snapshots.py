"""Dictionaries while they learn: decoders and densities at log-spaced steps, for the analysis of how concepts emerge.

    RUN/snapshots/<step>/<member>.npz   direction [F, D]: rows of W_dec, of norm 1, float16; norm [F]: their norms
                                        before; density [F]: share of the calibration rows on which a feature fires

Step 0 is before the first step. A resumed run writes again what lies behind its checkpoint, with the same content.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from harvest.files import read_arrays, write_arrays
from sae_jax.formats import Dictionary
from sae_jax.shapes import check_arrays, read_as

DIRECTORY = "snapshots"
ADVICE = "delete it, and what is shown of how dictionaries learn lacks that step"
AXES = ("FxD", "F", "F")  # of a snapshot's arrays


def snapshot_steps(total_steps: int, block_steps: int, count: int) -> set[int]:
    """0 and at most `count` ends of blocks, evenly spaced in log(step); the last step is one of them."""
    if not count:
        return set()
    spaced = np.geomspace(total_steps, min(block_steps, total_steps), count)
    ends = np.minimum(np.ceil(spaced / block_steps - 1e-9) * block_steps, total_steps)
    return {0, *ends.astype(int).tolist()}


class Snapshot(NamedTuple):
    direction: np.ndarray  # [F, D]
    norm: np.ndarray  # [F]
    density: np.ndarray  # [F]


def write_snapshot(run: Path, step: int, dictionaries: dict[str, Dictionary], x_NxD: dict[str, jax.Array]) -> None:
    """Of each member, by its id; `x_NxD` are the raw rows on which densities are taken."""
    directory = run / DIRECTORY / f"{step:09d}"
    directory.mkdir(parents=True, exist_ok=True)
    for name, dictionary in dictionaries.items():
        W_dec_FxD = dictionary.tensors["W_dec"]
        norm_F = np.linalg.norm(W_dec_FxD, axis=1)
        direction_FxD = (W_dec_FxD / np.maximum(norm_F, 1e-30)[:, None]).astype(np.float16)
        density_F = np.asarray(firing_share(*nnx.split(dictionary.sae), x_NxD[name]))
        arrays = Snapshot(direction_FxD, norm_F, density_F)._asdict()
        write_arrays(directory / f"{name}.npz", arrays)


@partial(jax.jit, static_argnums=0)
def firing_share(graphdef: nnx.GraphDef, weights: nnx.State, x_NxD: jax.Array) -> jax.Array:
    return (nnx.merge(graphdef, weights).encode(x_NxD.astype(jnp.float32)) != 0).mean(0)


def read_snapshots(run: Path, member: str) -> dict[int, Snapshot]:
    """{step: snapshot} in the order of the steps; empty where none were asked for."""
    found: dict[int, Snapshot] = {}
    for path in sorted((run / DIRECTORY).glob(f"*/{member}.npz")):
        with read_as(path, ADVICE):
            snapshot = Snapshot(**read_arrays(path, ADVICE))
            sizes = dict(zip("FD", next(iter(found.values()), snapshot).direction.shape, strict=True))
            arrays = {f"{name}_{axes}": of for axes, (name, of) in zip(AXES, snapshot._asdict().items(), strict=True)}
            check_arrays(path, arrays, ADVICE, sizes)
            found[int(path.parent.name)] = Snapshot(*(array.astype(np.float32) for array in snapshot))
    return found
