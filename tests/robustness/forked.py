"""Commands in forked processes, which start fast, because all imports are done before the fork.

Nothing is computed before the fork, because threads of JAX and torch do not survive it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

HEAVY = (
    "analysis.cli.train",
    "torch",
    "transformers",
    "transformer_lens",
    "harvest.model.language_model",
    "harvest.synthetic",
)
HEAVY += (
    "analysis.cli.train",
    "sae_jax.training.loop",
    "analysis.pages.feature",
    "analysis.study.questions",
    "analysis.study.measures",
    "analysis.quality.saebench",
)
HEAVY += ("analysis.ui.report.html", "analysis.comparison.clusters", "analysis.concepts.detectors", "umap")


@dataclass(frozen=True)
class Ended:
    """The end of a process. `status` is negative after a signal, and None after a timeout."""

    status: int | None
    out: str
    err: str


def warm(compiled: Path) -> None:
    """Import everything that commands import, and let them share compiled programs."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_NUM_CPU_DEVICES": "2"}
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for name in HEAVY:
        import_module(name)


def start(command: list[str] | Callable[[], object], logs: Path) -> int:
    """Fork a process for `python main.py COMMAND` or for a function. Returns its id."""
    sys.stdout.flush()
    if number := os.fork():
        return number
    status = 70
    try:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        import main

        if callable(command):
            command()
            status = 0
        else:
            status = main.run_as_command(command)
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException as error:
        import harvest.errors

        if callable(command) and isinstance(error, harvest.errors.InputError):
            print(f"error: {error}", file=sys.stderr)
            status = 2
        else:
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(number: int, logs: Path, seconds: float = 120) -> Ended:
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(number, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            return Ended(None, *texts(logs))
        time.sleep(0.01)
    return Ended(os.waitstatus_to_exitcode(ended[1]), *texts(logs))


def texts(logs: Path) -> tuple[str, str]:
    return (logs / "out").read_text(errors="replace"), (logs / "err").read_text(errors="replace")


def run(command: list[str] | Callable[[], object], logs: Path, seconds: float = 120) -> Ended:
    logs.mkdir(parents=True, exist_ok=True)
    return wait(start(command, logs), logs, seconds)
