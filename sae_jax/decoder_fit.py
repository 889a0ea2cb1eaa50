"""The decoder that reconstructs training rows best from the features of a trained dictionary.

Given the features of the rows, the squared error is quadratic in the decoder, so its minimum is known: the dictionary
update of Engan et al. 1999 (method of optimal directions). Adam ends well short of this minimum, most of all in short
runs and where a few rows hold much of the variance. The encoder and b_dec, and so the features, stay as they are.

Shapes: N rows, D width of the model, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
from flax import nnx
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, cg

from harvest.store import Split
from sae_jax.formats import Dictionary

ROWS_PER_FEATURE, FEWEST_ROWS, MOST_ROWS = 32, 1 << 15, 1 << 17  # training rows for the fit, if there are so many
CHUNK_ROWS = 2048
# The trained decoder row of a feature counts as much as this many more firings, so that rare features do not overfit.
PRIOR_FIRINGS = 60
WIDEST_SOLVED = 8192  # features, up to which the equations are solved exactly; in wider dictionaries by iteration
ITERATIONS = 20


def with_fitted_decoder(dictionary: Dictionary, split: Split, losses_F: np.ndarray) -> Dictionary:
    """The dictionary with W_dec at the least squared error on rows of a split, evenly spread.

    The error is a mean over one or several losses. `losses_F` is the share of the losses in which each feature takes
    part: 1, unless nested prefixes of the features reconstruct, for which the shares fall from 1. A dictionary whose
    features are not finite stays as it is.
    """
    f_NxF, products_FxD = features_and_products(dictionary, split)
    if not np.isfinite(products_FxD).all():
        return dictionary
    value_Fx1 = typical_values(f_NxF)[:, None]
    f_NxF = f_NxF @ sparse.diags_array(1 / value_Fx1[:, 0])
    trained_FxD = dictionary.tensors["W_dec"] * value_Fx1
    solve = solve_exactly if dictionary.d_sae <= WIDEST_SOLVED else solve_by_iteration
    change_FxD = solve(f_NxF, losses_F, trained_FxD, losses_F[:, None] * products_FxD / value_Fx1)
    W_dec = np.ascontiguousarray((trained_FxD + change_FxD) / value_Fx1, np.float32)
    return replace(dictionary, tensors=dictionary.tensors | {"W_dec": W_dec})


def bytes_of_fit(d_in: int, d_sae: int) -> int:
    """Estimated bytes of a fit, without the features: five arrays like the decoder, and two like its Gram matrix."""
    return 8 * (5 * d_sae * d_in + (2 * d_sae**2 if d_sae <= WIDEST_SOLVED else 0))


def features_and_products(dictionary: Dictionary, split: Split) -> tuple[sparse.csr_array, np.ndarray]:
    """(features f_NxF of rows of the split, fᵀ(x − b_dec) as [F, D]), in float64."""
    count = min(len(split), max(ROWS_PER_FEATURE * dictionary.d_sae, FEWEST_ROWS), MOST_ROWS)
    rows_N = np.linspace(0, len(split) - 1, count).round().astype(int)
    encode = jax.jit(lambda graphdef, weights, x_NxD: nnx.merge(graphdef, weights).encode(x_NxD), static_argnums=0)
    chunks, products_FxD = [], np.zeros((dictionary.d_sae, dictionary.d_in))
    for start in range(0, count, CHUNK_ROWS):
        x_NxD = split[rows_N[start : start + CHUNK_ROWS]].astype(np.float32)
        f_NxF = sparse.csr_array(np.asarray(encode(*nnx.split(dictionary.sae), x_NxD)), dtype=float)
        products_FxD += f_NxF.T @ (x_NxD - dictionary.tensors["b_dec"])
        chunks.append(f_NxF)
    return sparse.vstack(chunks, format="csr"), products_FxD


def typical_values(f_NxF: sparse.csr_array) -> np.ndarray:
    """The root of the mean square of the values that are not zero, [F]; 1 for a feature that never fires."""
    firings_F = f_NxF.count_nonzero(axis=0)
    return np.sqrt(np.where(firings_F > 0, f_NxF.power(2).sum(axis=0) / np.maximum(firings_F, 1), 1.0))


def solve_exactly(
    f_NxF: sparse.csr_array, losses_F: np.ndarray, W_FxD: np.ndarray, to_reconstruct_FxD: np.ndarray
) -> np.ndarray:
    """The change of W_FxD at which the gradient of the losses and of the prior is zero."""
    gram_FxF = (f_NxF.T @ f_NxF).toarray()
    gram_FxF *= np.minimum.outer(losses_F, losses_F)
    missing_FxD = to_reconstruct_FxD - gram_FxF @ W_FxD
    gram_FxF[np.diag_indices_from(gram_FxF)] += PRIOR_FIRINGS
    return linalg.solve(gram_FxF, missing_FxD, assume_a="pos", overwrite_a=True, overwrite_b=True)


def solve_by_iteration(
    f_NxF: sparse.csr_array, losses_F: np.ndarray, W_FxD: np.ndarray, to_reconstruct_FxD: np.ndarray
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
        (to_reconstruct_FxD - gram_times(W_FxD)).ravel(),
        M=operator(lambda change_FxD: change_FxD / squares_Fx1),
        maxiter=ITERATIONS,
    )
    return change.reshape(shape)
