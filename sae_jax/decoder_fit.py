"""The decoder that reconstructs training rows best from the features of a trained dictionary.

Given the features of the rows, the squared error is quadratic in the decoder, so its minimum is known: the dictionary
update of Engan et al. 1999 (method of optimal directions). Adam ends well short of this minimum, most of all in short
runs and where a few rows hold much of the variance. The encoder and b_dec, and so the features, stay as they are.

Shapes: N rows, D width of the model, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from flax import nnx
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, cg

from harvest.store import Split
from sae_jax.formats import Dictionary

ROWS_PER_FEATURE, FEWEST_ROWS, MOST_ROWS = 32, 1 << 15, 1 << 17  # training rows for the fit, if there are so many
CHUNK_ROWS, MOST_VALUES = 4096, 1 << 25  # rows, and feature values of rows, that are computed at once
# The trained decoder row of a feature counts as much as this many more firings, so that rare features do not overfit.
PRIOR_FIRINGS = 60
WIDEST_SOLVED = 8192  # features, up to which the equations are solved exactly; in wider dictionaries by iteration
ITERATIONS = 20
DENSE = 1 / 8  # share of features that fire, above which products are computed densely


def with_fitted_decoder(dictionary: Dictionary, split: Split, losses_F: np.ndarray) -> Dictionary:
    """The dictionary with W_dec at the least squared error on rows of a split, evenly spread.

    The error is a mean over one or several losses. `losses_F` is the share of the losses in which each feature takes
    part: 1, unless nested prefixes of the features reconstruct, for which the shares fall from 1. A dictionary whose
    features are not finite stays as it is, and so does one of over WIDEST_SOLVED features if many fire on a row.
    """
    exactly = dictionary.d_sae <= WIDEST_SOLVED
    gram_FxF = np.zeros((dictionary.d_sae,) * 2 if exactly else 0)
    products_FxD, chunks = np.zeros_like(dictionary.tensors["W_dec"], float), []
    squares_F, firings_F = np.zeros(dictionary.d_sae), np.zeros(dictionary.d_sae)
    for f_NxF, x_NxD in features_and_rows(dictionary, split):
        products_FxD += product(f_NxF, x_NxD - dictionary.tensors["b_dec"])
        squares_F += f_NxF.power(2).sum(axis=0)
        firings_F += f_NxF.count_nonzero(axis=0)
        if exactly:
            gram_FxF += product(f_NxF, f_NxF)
        elif is_dense(f_NxF):
            return dictionary
        else:
            chunks.append(f_NxF)
    if not np.isfinite(products_FxD).all():
        return dictionary
    # From here on, all features have a mean square of 1 when they fire, so that a firing counts alike in all of them.
    size_Fx1 = np.sqrt(np.where(firings_F > 0, squares_F / np.maximum(firings_F, 1), 1.0))[:, None]
    W_FxD, target_FxD = dictionary.tensors["W_dec"] * size_Fx1, losses_F[:, None] * products_FxD / size_Fx1
    if exactly:
        gram_FxF /= size_Fx1
        gram_FxF /= size_Fx1.T
        change_FxD = solve_exactly(gram_FxF, losses_F, W_FxD, target_FxD)
    else:
        f_NxF = sparse.vstack(chunks, format="csr") @ sparse.diags_array(1 / size_Fx1[:, 0])
        change_FxD = solve_by_iteration(f_NxF, losses_F, W_FxD, target_FxD)
    W_dec = np.ascontiguousarray((W_FxD + change_FxD) / size_Fx1, np.float32)
    return replace(dictionary, tensors=dictionary.tensors | {"W_dec": W_dec})


def bytes_of_fit(d_in: int, d_sae: int) -> int:
    """Estimated bytes of a fit: six arrays like the decoder, and two like its Gram matrix or the active features."""
    values = d_sae**2 if d_sae <= WIDEST_SOLVED else 100 * MOST_ROWS
    return 8 * (6 * d_sae * d_in + 2 * values)


def features_and_rows(dictionary: Dictionary, split: Split) -> Iterator[tuple[sparse.csr_array, np.ndarray]]:
    """(features f_NxF, rows x_NxD) of chunks of rows. Features are in float64: errors are small differences of sums."""
    count = min(len(split), max(ROWS_PER_FEATURE * dictionary.d_sae, FEWEST_ROWS), MOST_ROWS)
    rows_N = np.linspace(0, len(split) - 1, count).round().astype(int)
    at_once = min(CHUNK_ROWS, max(1, MOST_VALUES // dictionary.d_sae))
    for start in range(0, count, at_once):
        x_NxD = split[rows_N[start : start + at_once]].astype(np.float32)
        yield sparse.csr_array(np.asarray(encode(*nnx.split(dictionary.sae), x_NxD)), dtype=float), x_NxD


@partial(jax.jit, static_argnums=0)
def encode(graphdef: nnx.GraphDef, weights: nnx.State, x_NxD: np.ndarray) -> jax.Array:
    return nnx.merge(graphdef, weights).encode(x_NxD)


def is_dense(f_NxF: sparse.csr_array) -> bool:
    return f_NxF.nnz > DENSE * f_NxF.shape[0] * f_NxF.shape[1]


def product(f_NxF: sparse.csr_array, other: np.ndarray | sparse.csr_array) -> np.ndarray:
    """fᵀ times the other array, as a dense array."""
    if is_dense(f_NxF):
        f_NxF, other = f_NxF.toarray(), other if isinstance(other, np.ndarray) else other.toarray()
    result = f_NxF.T @ other
    return result if isinstance(result, np.ndarray) else result.toarray()


def solve_exactly(gram_FxF: np.ndarray, losses_F: np.ndarray, W_FxD: np.ndarray, target_FxD: np.ndarray) -> np.ndarray:
    """The change of W_FxD at which the gradient of the losses and of the prior is zero. `gram_FxF` is overwritten."""
    if losses_F.min() < 1:
        gram_FxF *= np.minimum.outer(losses_F, losses_F)
    missing_FxD = target_FxD - gram_FxF @ W_FxD
    gram_FxF[np.diag_indices_from(gram_FxF)] += PRIOR_FIRINGS
    return linalg.solve(gram_FxF, missing_FxD, assume_a="pos", overwrite_a=True, overwrite_b=True)


def solve_by_iteration(
    f_NxF: sparse.csr_array, losses_F: np.ndarray, W_FxD: np.ndarray, target_FxD: np.ndarray
) -> np.ndarray:
    """The same by conjugate gradients from a change of zero, without an array of F² values."""
    shares, transposed, shape = np.unique(losses_F), f_NxF.T.tocsr(), W_FxD.shape

    def gram_times(W_FxD: np.ndarray) -> np.ndarray:
        """The sum over the losses, each with a nested prefix of the features."""
        prefixes = [(losses_F >= share)[:, None] for share in shares]
        products = (prefix * (transposed @ (f_NxF @ (prefix * W_FxD))) for prefix in prefixes)
        return sum(weight * product for weight, product in zip(np.diff(shares, prepend=0.0), products, strict=True))

    def operator(of: Callable[[np.ndarray], np.ndarray]) -> LinearOperator:
        return LinearOperator((W_FxD.size,) * 2, lambda flat: of(flat.reshape(shape)).ravel(), dtype=float)

    squares_Fx1 = (losses_F * f_NxF.power(2).sum(axis=0) + PRIOR_FIRINGS)[:, None]
    change, _ = cg(
        operator(lambda change_FxD: gram_times(change_FxD) + PRIOR_FIRINGS * change_FxD),
        (target_FxD - gram_times(W_FxD)).ravel(),
        M=operator(lambda change_FxD: change_FxD / squares_Fx1),
        maxiter=ITERATIONS,
    )
    return change.reshape(shape)
