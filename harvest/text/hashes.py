"""A hash of numbers by multiplications and shifts. Imports neither torch nor jax."""

from __future__ import annotations

import numpy as np


def mixed(number_N: np.ndarray) -> np.ndarray:
    """A hash of each uint64, whose bits depend on all bits of the number (the end of splitmix64; 0 stays 0)."""
    number_N = (number_N ^ (number_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number_N = (number_N ^ (number_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number_N ^ (number_N >> np.uint64(31))
