"""Analyses of finished runs. Importing this package loads neither jax nor torch.

import analysis
run = analysis.open_run("runs/first")
features = analysis.load_features(run)  # {member id: Features}
analysis.figures.to_matplotlib(chart)
"""

import sys
from importlib import import_module
from typing import Any

__all__ = ["figures", "load_features", "open_run", "train_population"]


def __getattr__(name: str) -> Any:
    if name in ("load_features", "open_run", "train_population"):  # imported on first use, so that importing is fast
        return getattr(import_module("analysis.api"), name)
    if name == "figures":
        return import_module("analysis.plots.style")
    # With these arguments, the traceback names the nearest name.
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted(__all__)
