"""Conversion of torch tensors to numpy arrays, and reading of torch files. Such files are pickles, and are read with
torch's weights-only reader, which runs no code in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from harvest.errors import InputError
from harvest.files import refuse_irregular

KNOWN_TO_NUMPY = (torch.float16, torch.float32, torch.float64)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict, converted by `array_of`. Raises InputError for any other content."""
    refuse_irregular(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as e:  # the file is damaged or missing, or holds more than tensors
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(
            f"{path} cannot be read as a file of tensors, and no code in it is run ({reason}): save a state "
            "dict of tensors"
        ) from e
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} does not hold a state dict of tensors: save one with torch.save")
    return {str(name): array_of(tensor, f"{path}: {name}") for name, tensor in state.items()}


def array_of(tensor: torch.Tensor, what: str) -> np.ndarray:
    """A tensor on any device and in any layout as a numpy array; in float32 if numpy lacks its number format.

    Raises InputError, which names `what`, for a meta tensor, and for a tensor that torch cannot convert.
    """
    if tensor.is_meta:
        raise InputError(f"{what} is a meta tensor: it has a shape but no values: give a tensor with values")
    try:
        tensor = tensor.detach().cpu()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_floating_point() and tensor.dtype not in KNOWN_TO_NUMPY:
            tensor = tensor.float()
        return tensor.resolve_conj().resolve_neg().numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # but not torch.OutOfMemoryError
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{what} is of type {tensor.dtype} ({tensor.layout}), which cannot be read ({reason}): give it as float32"
        ) from error
