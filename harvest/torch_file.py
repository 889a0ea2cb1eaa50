"""Tensors in torch's own files, by its weights-only reader: such a file is a pickle, and none of its code is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from harvest.errors import InputError


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict; bfloat16, which numpy has not, as float32. Raises InputError for anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # of the reader: damaged, no such file, or a pickle that asks for more than tensors
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"{path} cannot be read as tensors alone, and no code in it is run: {reason}") from e
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict of tensors")
    wide = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in state.items()}
    return {str(name): tensor.detach().numpy() for name, tensor in wide.items()}
