"""The device and number format in which a model will run, known without an import of torch wherever possible."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from harvest.sources import Source


def refuse_no_device(device: str) -> None:
    """Raise InputError for a device that this machine lacks, before anything is loaded."""
    if device.startswith("cuda"):
        from harvest.model.number_format import device_of

        device_of(device)


def dtype_on(device: str, asked: str, model: Source) -> str:
    """The number format in which a model runs; "auto" is that of its files on an accelerator, and float32 on a CPU."""
    if asked != "auto":
        return asked
    if model.published_dtype == "float32" or device == "cpu" or not (device.startswith("cuda") or has_gpu_driver()):
        return "float32"
    from harvest.model.number_format import device_of

    return "float32" if device_of(device) == "cpu" else model.published_dtype


def has_gpu_driver() -> bool:
    """Whether there is a driver of NVIDIA or AMD, without which torch finds no GPU. Importing torch takes seconds."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True
