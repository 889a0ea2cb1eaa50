"""Hashes of numbers, and of tokens with those before them. Imports neither torch nor jax."""

from __future__ import annotations

import numpy as np

MIX = np.uint64(0x9E3779B97F4A7C15)


def mixed(number_N: np.ndarray) -> np.ndarray:
    """A hash of each uint64, whose bits depend on all bits of the number (the end of splitmix64; 0 stays 0)."""
    number_N = (number_N ^ (number_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number_N = (number_N ^ (number_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number_N ^ (number_N >> np.uint64(31))


def hashed(number_N: np.ndarray) -> np.ndarray:
    """A hash of each uint64, including 0 (splitmix64)."""
    return mixed(number_N + MIX)


def context_hashes(tokens_WxT: np.ndarray, before: int) -> np.ndarray:
    """A hash of each token together with the `before` tokens that precede it in its window, uint64 [W, T]."""
    hash_WxT = np.zeros(tokens_WxT.shape, np.uint64)
    for back in range(min(before + 1, tokens_WxT.shape[1])):
        shifted_WxT = np.zeros_like(hash_WxT)
        shifted_WxT[:, back:] = tokens_WxT[:, : tokens_WxT.shape[1] - back] + 1
        hash_WxT = (hash_WxT ^ shifted_WxT) * MIX
        hash_WxT ^= hash_WxT >> np.uint64(29)
    return hash_WxT
