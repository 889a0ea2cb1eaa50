"""Snapshots of decoders and densities at log-spaced steps of training, for the analysis of how features emerge.

    RUN/snapshots/<step>/<member>.npz   direction [F, D]: rows of W_dec scaled to norm 1, float16
                                        norm [F]: the norms of the rows of W_dec
                                        density [F]: share of the calibration rows on which a feature fires

Step 0 is the initialization. A resumed run writes the snapshots after its checkpoint again, with the same content.
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
ADVICE = "delete it; charts of training then lack that step"
AXES = ("FxD", "F", "F")  # axes of the arrays of a snapshot


def snapshot_steps(total_steps: int, block_steps: int, count: int) -> set[int]:
    """Step 0 and at most `count` ends of blocks, evenly spaced in log(step) and including the last step."""
    if not count:
        return set()
    spaced = np.geomspace(total_steps, min(block_steps, total_steps), count)
    ends = np.minimum(np.ceil(spaced / block_steps - 1e-9) * block_steps, total_steps)
    return {0, *ends.astype(int).tolist()}


class Snapshot(NamedTuple):
    direction: np.ndarray  # [F, D]
    norm: np.ndarray  # [F]
    density: np.ndarray  # [F]


def write_snapshot(run: Path, step: int, member: str, dictionary: Dictionary, x_NxD: np.ndarray) -> None:
    """Write the snapshot of a member. `x_NxD` holds raw rows for the densities."""
    directory = run / DIRECTORY / f"{step:09d}"
    W_dec_FxD = dictionary.tensors["W_dec"]
    norm_F = np.linalg.norm(W_dec_FxD, axis=1)
    direction_FxD = (W_dec_FxD / np.maximum(norm_F, 1e-30)[:, None]).astype(np.float16)
    density_F = np.asarray(firing_share(*nnx.split(dictionary.sae), x_NxD))
    write_arrays(directory / f"{member}.npz", Snapshot(direction_FxD, norm_F, density_F)._asdict())


@partial(jax.jit, static_argnums=0)
def firing_share(graphdef: nnx.GraphDef, weights: nnx.State, x_NxD: jax.Array) -> jax.Array:
    """Share of the rows on which each feature fires, [F]."""
    return (nnx.merge(graphdef, weights).encode(x_NxD.astype(jnp.float32)) != 0).mean(0)


def read_snapshots(run: Path, member: str) -> dict[int, Snapshot]:
    """{step: snapshot} in the order of the steps; empty if none were requested."""
    snapshots: dict[int, Snapshot] = {}
    for path in sorted((run / DIRECTORY).glob(f"*/{member}.npz")):
        with read_as(path, ADVICE):
            snapshot = Snapshot(**read_arrays(path, ADVICE))
            sizes = dict(zip("FD", next(iter(snapshots.values()), snapshot).direction.shape, strict=True))
            named = zip(AXES, snapshot._asdict().items(), strict=True)
            arrays = {f"{name}_{axes}": array for axes, (name, array) in named}
            check_arrays(path, arrays, ADVICE, sizes)
            snapshots[int(path.parent.name)] = Snapshot(*(array.astype(np.float32) for array in snapshot))
    return snapshots
