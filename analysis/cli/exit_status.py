"""How a command ends: its exit status, its one-line message for each kind of failure, and its reaction to signals."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from analysis.ui.terminal.wording import folded, visible
from harvest.capture import DISK_FULL
from harvest.errors import InputError, is_out_of_memory

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_status(command: str, run: Callable[[list[str]], None], argv: list[str]) -> int:
    """The exit status of `run(argv)`: 0 done, 1 failed, 2 bad input, 130 interrupted, 141 output pipe closed.

    Only bugs of this program show a traceback. The first signal stops the program with a
    message. A second signal ends it at once.
    """
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:  # the stream was closed when the program started
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    previous = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        return status_of(command, run, argv)
    except KeyboardInterrupt:  # a second signal after training, which handles the first one itself
        return 130
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop(number: int, frame: object) -> None:
    leave_to_system()
    raise KeyboardInterrupt


def leave_to_system() -> None:
    """Restore the system's signal handlers: from now on a signal ends the process without a message."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def status_of(command: str, run: Callable[[list[str]], None], argv: list[str]) -> int:
    trains = command == "train"
    again = "then run the same command with --resume to continue" if trains else "then run the same command again"
    try:
        if garbled := next((text for text in argv if any("\udc80" <= c <= "\udcff" for c in text)), None):
            encoding = sys.getfilesystemencoding()
            raise InputError(f"{ascii(garbled)[1:-1]} is not valid {encoding}: rename the file, or correct the text")
        try:
            with memory_advice(command):
                run(argv)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        resume = ", with --resume if training had begun" if trains else " to start over"
        return fail(f"stopped; run the same command again{resume}", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards the output that is still buffered
        return fail(f"the output pipe was closed: {again}", 141) if trains else 141
    except InputError as e:
        return fail(str(e), 2)
    except MemoryError as e:
        return fail(str(e), 1)
    except (OSError, ImportError) as e:
        wrong = wrong_version() if isinstance(e, (FileNotFoundError, ImportError)) else ""
        if isinstance(e, ImportError) and not wrong:
            raise
        trouble = os_trouble(e, again) if isinstance(e, OSError) else str(e)
        cause = f"; perhaps because {wrong}: then install sae-jax again (`pip install -e .` in its folder)"
        return fail(trouble + (cause if wrong else ""), 1)
    except RuntimeError as e:
        from sae_jax.training.progress import Diverged, Interrupted

        if isinstance(e, Interrupted):
            return fail(f"{e}; run the same command with --resume to continue", 130)
        if isinstance(e, Diverged):
            return fail(str(e), 1)
        raise
    return 0


def wrong_version() -> str:
    """A library of which another version is installed than sae-jax needs, in words; "" if there is none."""
    try:
        from packaging.requirements import Requirement

        texts = requires("sae-jax") or []
    except ImportError:  # it runs from its folder without having been installed
        return ""
    for needed in map(Requirement, texts):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            try:
                found = version(needed.name)
            except PackageNotFoundError:
                found = None
            if not found:
                return f"{needed.name} is not installed"
            if not needed.specifier.contains(found, prereleases=True):
                return f"{needed.name} {found} is installed, but sae-jax needs {needed.specifier}"
    return ""


def os_trouble(error: OSError, again: str) -> str:
    where = error.filename or "the output"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many open files, so {where} cannot be opened: allow more (ulimit -n 4096), {again}"
    if error.errno not in DISK_FULL:
        return f"{error.strerror or error}: {where}: check the path and its permissions"
    there = next((place for place in Path(where).absolute().parents if place.exists()), Path())
    if (room := os.statvfs(there)).f_bavail and room.f_files and not room.f_favail:
        return f"the disk is out of inodes, so {where} cannot be written: remove some files, {again}"
    return f"the disk is full, so {where} cannot be written: free some space, {again}; finished work is kept"


NEEDS_LESS_MEMORY = {
    "train": "use a smaller --hidden-dim, fewer members or a smaller --batch-size",
    "attribute": "use a shorter --prompt",
    "evaluate": "give fewer dictionaries at once, or a shorter --seq-len",
    "find-feature": "use fewer members at once (--member), or fewer --passages",
    "saebench": "use fewer members at once (--member)",
    "steer": "use a shorter --prompt, or fewer --candidates",
    "study": "use fewer --documents",
}


@contextmanager
def memory_advice(command: str) -> Iterator[None]:
    """Turn any library's out-of-memory exception into a MemoryError that says which flags need less memory."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        advice = NEEDS_LESS_MEMORY.get(command, "use a run with fewer or narrower members")
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise MemoryError(f"out of memory ({reason}): {advice}") from error


def fail(message: str, status: int) -> int:
    line = visible(" ".join(message.splitlines()))
    line = line if status == 130 else f"error: {line}"
    if sys.stderr.isatty():
        line = folded(line, os.get_terminal_size(sys.stderr.fileno()).columns or 80)  # 0: not known
    print(line, file=sys.stderr)
    return status
