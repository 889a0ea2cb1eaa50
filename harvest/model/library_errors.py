"""Errors of other libraries as one sentence: the problem and its reason. Does not import torch."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from harvest.errors import InputError, is_out_of_memory

OURS = ("harvest", "sae_jax", "analysis", "main")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """A context in which an error of a library becomes an InputError with `what` and the reason.

    Errors of this project's code pass unchanged, even if raised in a hook that a library calls, and so do out-of-memory
    errors.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        packages = [
            str(frame.f_globals.get("__name__")).partition(".")[0]
            for frame, _ in traceback.walk_tb(error.__traceback__)
        ]
        behind = packages[next((i for i, package in enumerate(packages) if package not in OURS), len(packages)) :]
        if not behind or behind[-1] in OURS or not {"sae_jax", "analysis"}.isdisjoint(behind):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{what}: {reason}") from error
