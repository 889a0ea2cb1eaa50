"""Number formats of rows on disk: what is written for rows, and how they are restored. Imports neither torch nor jax.

    float16, float32   the values
    bfloat16           the values, whose bits numpy reads as uint16
    int8               whole multiples of one scale per row, 1/127 of its largest value (float32, in a file of its own)

Shapes: N rows, D width of the model.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

BYTES = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4}  # per value; a later format holds what an earlier cannot


def encoded(rows_NxD: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """The arrays that hold rows in this format, by the names of their files. Values that do not fit become infinite."""
    if dtype == "int8":
        scale_Nx1 = np.abs(rows_NxD).max(1, keepdims=True).astype(np.float32) / 127
        steps_NxD = np.rint(rows_NxD / np.where(scale_Nx1 > 0, scale_Nx1, 1))
        return {"rows": steps_NxD.astype(np.int8), "scales": scale_Nx1[:, 0]}
    if dtype == "bfloat16":
        return {"rows": rows_NxD.astype(ml_dtypes.bfloat16).view(np.uint16)}
    with np.errstate(over="ignore"):
        return {"rows": rows_NxD.astype(dtype, copy=False)}


def decoded(stored_NxD: np.ndarray, scale_N: np.ndarray | None) -> np.ndarray:
    """Rows from the arrays that hold them: float16 if they are, otherwise float32."""
    if scale_N is not None:
        return stored_NxD * scale_N[:, None]
    if stored_NxD.dtype == np.uint16:
        return stored_NxD.view(ml_dtypes.bfloat16).astype(np.float32)
    return stored_NxD
