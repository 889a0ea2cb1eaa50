"""How a command ends: its exit status, one line for each kind of failure, and what a signal does."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from analysis.ui.terminal.wording import visible
from harvest.capture import DISK_FULL
from harvest.errors import InputError, is_out_of_memory

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_status(command: str, run: Callable[[list[str]], None], argv: list[str]) -> int:
    """The exit status of `run(argv)`: 0 done, 1 failed, 2 bad input, 130 stopped, 141 nobody reads the output.

    `command` is "" for training. Only defects of this program show a traceback. The first signal stops the program with
    a message, a second one stops it at once.
    """
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:  # it was closed from the start
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    previous = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        return status_of(command, run, argv)
    except KeyboardInterrupt:  # after the end of training, which had taken the first
        return 130
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop(number: int, frame: object) -> None:
    leave_to_system()
    raise KeyboardInterrupt


def leave_to_system() -> None:
    """From now on a signal ends the process, without a word."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def status_of(command: str, run: Callable[[list[str]], None], argv: list[str]) -> int:
    trains = not command
    again = "the same command with --resume goes on" if trains else "then give the same command again"
    try:
        if garbled := next((text for text in argv if any("\udc80" <= c <= "\udcff" for c in text)), None):
            raise InputError(f"{ascii(garbled)[1:-1]}: its bytes are no {sys.getfilesystemencoding()}: rename it")
        try:
            with memory_said(command):
                run(argv)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        goes_on = " (with --resume once training has begun) goes on" if trains else " begins again"
        return fail(f"stopped; the same command again{goes_on}", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still unwritten goes nowhere
        return fail(f"nobody reads the output any more: {again}", 141) if trains else 141
    except InputError as e:
        return fail(str(e), 2)
    except MemoryError as e:
        return fail(str(e), 1)
    except OSError as e:
        return fail(os_trouble(e, again), 1)
    except RuntimeError as e:
        from sae_jax.training.progress import Diverged, Interrupted

        if isinstance(e, Interrupted):
            return fail(f"{e}; the same command with --resume goes on", 130)
        if isinstance(e, Diverged):
            return fail(str(e), 1)
        raise
    return 0


def os_trouble(error: OSError, again: str) -> str:
    where = error.filename or "the output"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many files are open for this system to open {where}: allow more (ulimit -n 4096); {again}"
    if error.errno not in DISK_FULL:
        return f"{error.strerror or error}: {where}"
    there = next((place for place in Path(where).absolute().parents if place.exists()), Path())
    if (room := os.statvfs(there)).f_bavail and room.f_files and not room.f_favail:
        return f"no more files can be made where {where} is (it is out of inodes): remove some; {again}"
    return f"the disk is full ({where}): what was done before stays; make room, and {again}"


NEEDS_LESS_MEMORY = {  # by command; training has no name
    "": "a smaller --hidden-dim, fewer members or a smaller --batch-size need less",
    "attribute": "a shorter --prompt needs less",
    "evaluate": "fewer dictionaries at once or a shorter --seq-len need less",
    "find-feature": "fewer members at once (--member) or fewer --passages need less",
    "saebench": "fewer members at once (--member) need less",
    "steer": "a shorter prompt or fewer --candidates need less",
    "study": "fewer --documents need less",
}


@contextmanager
def memory_said(command: str) -> Iterator[None]:
    """Raises MemoryError, with what would need less, for whatever a library raises where no memory is left."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        advice = NEEDS_LESS_MEMORY.get(command, "a run with fewer or narrower members needs less")
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise MemoryError(f"there is not enough memory ({reason}): {advice}") from error


def fail(message: str, status: int) -> int:
    line = visible(" ".join(message.splitlines()))
    print(line if status == 130 else f"error: {line}", file=sys.stderr)
    return status
