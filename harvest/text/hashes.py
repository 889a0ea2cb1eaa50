"""A hash of numbers, by multiplication and shifts. No torch, no jax."""

from __future__ import annotations

import numpy as np


def mixed(number_N: np.ndarray) -> np.ndarray:
    """A hash of each uint64: each of its bits depends on all of the number's (the end of splitmix64; 0 stays 0)."""
    number_N = (number_N ^ (number_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number_N = (number_N ^ (number_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number_N ^ (number_N >> np.uint64(31))
