"""Errors that the user can fix, and the recognition of out-of-memory errors from all libraries."""

from __future__ import annotations

import errno

NO_MEMORY = (  # words in the errors of torch, CUDA's libraries, XLA, C++, numpy and the system
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
    """A request that cannot be fulfilled. The message states the problem, with the value, and the fix.

    `main.py` prints the message on one line and exits with 2. Defects of this program raise other exceptions.
    """


def shortened(value: object) -> str:
    """A value for a message, on one line and cut after 60 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error or its cause is a lack of memory, of the machine or of a device."""
    if error is None or isinstance(error, InputError):
        return False
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = f"{type(error).__name__} {error}".lower()
    return any(words in text for words in NO_MEMORY) or is_out_of_memory(error.__cause__)
