"""Populations of sparse autoencoders, trained in one jitted program. Importing this package does not load jax.

import sae_jax
sae = sae_jax.load("runs/first", member="topk-f256-k32-lr1e-3-s0")
"""

import sys
from typing import Any

__all__ = ["__version__", "from_pretrained", "load", "spliced", "train_population"]


def __getattr__(name: str) -> Any:  # what a name needs is loaded only when it is used
    if name == "__version__":
        from importlib.metadata import version

        return version("sae-jax")
    if name == "load":
        from sae_jax.loading import load

        return load
    if name == "from_pretrained":
        from sae_jax.pretrained import from_pretrained

        return from_pretrained
    if name == "spliced":
        from harvest.interventions.splicing import spliced

        return spliced
    if name == "train_population":
        from analysis.api import train_population

        return train_population
    # With these arguments, the traceback names the nearest name.
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted(__all__)
