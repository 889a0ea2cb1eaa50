"""The device and the number format in which a language model runs, and what counts as rounding there."""

from __future__ import annotations

import torch

from harvest.errors import InputError

SPREAD = "spread"  # the value of --device for a model that is too large for one device


def device_of(asked: str) -> str:
    """The device that is asked for; for "auto" and "spread" cuda if there is such a device, otherwise cpu.

    Raises InputError for a device that this machine lacks.
    """
    if asked in ("auto", SPREAD):
        return "cuda" if torch.cuda.is_available() else "cpu"
    name, _, number = asked.partition(":")
    if name == "cuda" and int(number or 0) >= (count := torch.cuda.device_count()):
        raise InputError(
            f"--device {asked}: torch finds {count or 'no'} CUDA device{'s' * (count > 1)} on this machine: "
            "give another device, or leave --device out"
        )
    return asked


def few_roundings(dtype: torch.dtype) -> float:
    """The tolerance, relative to the largest value, for values that were rounded a few times on another way."""
    return 4 * torch.finfo(dtype).eps
