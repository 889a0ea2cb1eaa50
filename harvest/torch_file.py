"""Torch's tensors as numpy arrays, and those in torch's own files, by its weights-only reader: such a file is a pickle,
and none of its code is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from harvest.errors import InputError
from harvest.files import refuse_irregular

KNOWN_TO_NUMPY = (torch.float16, torch.float32, torch.float64)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict, as `array_of` has them. Raises InputError for anything else."""
    refuse_irregular(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as e:  # of the reader: damaged, no such file, or a pickle that asks for more than tensors
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"{path} cannot be read as tensors alone, and no code in it is run: {reason}") from e
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict of tensors")
    return {str(name): array_of(tensor, f"{path}: {name}") for name, tensor in state.items()}


def array_of(tensor: torch.Tensor, what: str) -> np.ndarray:
    """The numbers of a tensor on any device, in any layout; of number formats that numpy has not, as float32.

    Raises InputError, which names `what`, for a tensor without numbers (meta), and for one that torch cannot convert.
    """
    if tensor.is_meta:
        raise InputError(f"{what} is a meta tensor: it has a shape and no numbers. Save it with its values")
    try:
        tensor = tensor.detach().cpu()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_floating_point() and tensor.dtype not in KNOWN_TO_NUMPY:
            tensor = tensor.float()
        return tensor.resolve_conj().resolve_neg().numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # a torch.OutOfMemoryError is none of ours
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"{what} is of {tensor.dtype} ({tensor.layout}), which cannot be read: {reason}") from error
