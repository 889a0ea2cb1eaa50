"""Populations of sparse autoencoders, trained in one jitted program. Importing this package does not load jax.

import sae_jax
sae = sae_jax.load("runs/first", member="topk-f256-k32-lr1e-3-s0")
"""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # loads jax only when it is used
        from sae_jax.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
