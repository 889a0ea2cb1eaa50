"""Errors: those that a user can mend, and those for want of memory, which every library says in its own way."""

from __future__ import annotations

import errno

NO_MEMORY = (  # as torch, CUDA's libraries, XLA, C++, numpy and the system say it
    "outofmemory",
    "out of memory",
    "alloc_failed",
    "resource_exhausted",
    "bad_alloc",
    "unable to allocate",
    "t allocate memory",
    "cannot allocate memory",
)


class InputError(ValueError):
    """Something the user asked for cannot be done: what was wrong, with the value, and what to do.

    `main.py` prints it as one line and exits with 2; it never stands for a defect of this program.
    """


def shortened(value: object) -> str:
    """A value for a message: on one line, and only its beginning where it is long."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this error, or what caused it, is that there was no memory left, of the machine or of a device."""
    if error is None or isinstance(error, InputError):
        return False
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    said = f"{type(error).__name__} {error}".lower()
    return any(words in said for words in NO_MEMORY) or is_out_of_memory(error.__cause__)
