"""Checkpoints of the whole state of a run (weights, optimizer, random keys), written and read by Orbax.

    checkpoints/<step>/states     the arrays
    checkpoints/<step>/record     shape, number format and checksum of each array; how far metrics.jsonl was written
    checkpoints/damaged-<step>    a checkpoint that could not be read: kept, but not used

The step also determines the position in the data. The checksums are ours because Orbax stores none for the content of
arrays. Reading deletes nothing.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from harvest.errors import InputError, is_out_of_memory
from harvest.files import array_checksum, sealed, unsealed
from sae_jax.run_directory import DAMAGED, NO_METRICS
from sae_jax.training.population import State

METADATA_BYTES = 1 << 20  # approximate size of the files that Orbax writes in addition to the arrays
# Errors of a checkpoint that lost a file. Other system errors are trouble of the machine.
LACKING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax also logs at length what it raises or handles
ocp.type_handlers.register_type_handler(  # the saved arrays are copies already, so Orbax need not copy them again
    np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False), override=True
)


class Checkpoints:
    """The two newest checkpoints of a run, written in the background. A checkpoint is complete or absent.

    `asked` is the checksum of the run's configuration; a checkpoint of another run is refused.

    `save` and `close` raise OSError if the disk is full, also if a write of the previous `save` failed.
    """

    def __init__(self, directory: Path, every_seconds: float, asked: int = 0):
        self.every_seconds = every_seconds
        self.saved_at = time.monotonic()
        self.directory, self.asked = directory, asked
        directory.mkdir(parents=True, exist_ok=True)
        alone = ocp.options.MultiprocessingOptions(active_processes={0})  # with several processes, only the first
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=alone,
        )
        self.manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.every_seconds

    def save(self, step: int, states: list[State], metrics: Mapping[str, int], seconds: float = 0.0) -> None:
        """Start to write a checkpoint.

        `states` must be on the host, because the next block writes into the device's buffers while Orbax still reads.
        `metrics` records how far metrics.jsonl is written, `seconds` how long the training has taken so far.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(states)) + METADATA_BYTES
        if shutil.disk_usage(self.directory).free < needed:  # Orbax would print many tracebacks
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))
        leaves = {
            name: facts | {"crc32": array_checksum(np.asarray(leaf))}
            for name, (leaf, facts) in described(states).items()
        }
        record = {"step": step, "asked": self.asked, "leaves": leaves, "metrics": metrics, "seconds": seconds}
        with self._os_errors():
            self.manager.save(
                step,
                args=ocp.args.Composite(states=ocp.args.StandardSave(states), record=ocp.args.JsonSave(sealed(record))),
            )
        self.saved_at = time.monotonic()

    def restore(self, start: list[State], say: Callable[[str], None]) -> tuple[int, list[State], dict[str, int], float]:
        """(step, states, how far metrics.jsonl was written, seconds of training) of the newest undamaged checkpoint.

        Without a checkpoint, these are those of the start.

        Damaged checkpoints are renamed. Raises InputError if all checkpoints are damaged, or if one has other arrays
        than `start`; OSError or MemoryError if the machine is at fault and not the checkpoint.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            with silenced_leftovers():
                try:
                    return step, *self._read(step, start)
                except InputError:
                    raise
                except Exception as error:  # the readers raise anything if a file is damaged
                    trouble = trouble_of_the_machine(error, self.directory)
                if trouble:
                    raise trouble
            say(
                f"the checkpoint of step {step:,} is damaged and was renamed to {self._move_aside(step)}; the one "
                "before it is tried, if there is one"
            )
        if any(self.directory.glob(f"{DAMAGED}*")):
            raise InputError(
                f"all checkpoints in {self.directory} are damaged and were renamed to {DAMAGED}*, so the run cannot be "
                "resumed: copy an undamaged checkpoint there, named by its step, or add --force to delete them and "
                "start again"
            )
        return 0, start, NO_METRICS, 0.0

    def close(self) -> None:
        with self._os_errors():
            self.manager.wait_until_finished()
        self.manager.close()

    def _read(self, step: int, start: list[State]) -> tuple[list[State], dict[str, int], float]:
        """(states, how far metrics.jsonl was written, seconds of training) of a checkpoint.

        Raises InputError if it has other arrays than `start`, and any exception if it is damaged.
        """
        parts = ocp.args.Composite(record=ocp.args.JsonRestore())
        try:
            record = unsealed(self.manager.restore(step, args=parts)["record"], "", "")
        except InputError as error:
            raise ValueError("its record is damaged") from error
        if (record["step"], record["asked"]) != (step, self.asked):
            whose = "of another run" if record["asked"] != self.asked else f"of step {record['step']:,}"
            raise InputError(f"{self.directory / str(step)} is a checkpoint {whose} that was copied there: remove it")
        saved = {name: {"shape": leaf["shape"], "dtype": leaf["dtype"]} for name, leaf in record["leaves"].items()}
        needed = {name: facts for name, (_, facts) in described(start).items()}
        if different := sorted(name for name in saved | needed if saved.get(name) != needed.get(name)):
            name = different[0]
            raise InputError(
                f"{self.directory / str(step)} was saved by another version of this program: {name} is "
                f"{array_text(saved.get(name))}, but must be {array_text(needed.get(name))}. Resume with the version "
                "that started this run, or train in another --run-dir"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, start)
        states = self.manager.restore(step, args=ocp.args.Composite(states=ocp.args.StandardRestore(abstract))).states
        for name, (leaf, _) in described(states).items():
            if array_checksum(np.asarray(leaf)) != record["leaves"][name]["crc32"]:
                raise ValueError(f"the checksum of {name} differs")
        return states, record["metrics"], record.get("seconds", 0.0)  # checkpoints of earlier versions lack them

    def _move_aside(self, step: int) -> Path:
        names = (self.directory / f"{DAMAGED}{step}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        aside = next(path for path in names if not path.exists())
        os.rename(self.directory / str(step), aside)
        self.manager.reload()
        return aside

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        """Raise system errors as OSError: tensorstore only writes their number into the text of a ValueError."""
        try:
            yield
        except ValueError as e:
            if number := system_error_in(e):
                raise OSError(number, os.strerror(number), str(self.directory)) from e
            raise


@contextmanager
def silenced_leftovers() -> Iterator[None]:
    """Suppress the reports that Python prints on the unfinished reads that Orbax leaves of a damaged checkpoint.

    Some reads end later, in a thread, and find the event loop of Orbax closed. Those reports are suppressed for good.
    """
    hook = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = report_others


def described(states: list[State]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """{name: (array, {"shape": ..., "dtype": ...})} of all arrays of the states."""
    leaves = jax.tree_util.tree_leaves_with_path(states)
    return {
        jax.tree_util.keystr(path): (leaf, {"shape": list(leaf.shape), "dtype": str(leaf.dtype)})
        for path, leaf in leaves
    }


def array_text(facts: Mapping[str, Any] | None) -> str:
    return f"{facts['dtype']} of shape {facts['shape']}" if facts else "absent"


def system_error_in(error: BaseException) -> int | None:
    """The number of the system error in the text of tensorstore's exception, or None."""
    match = re.search(r"os_error_code='(\d+)'", str(error))
    return int(match[1]) if match else None


def trouble_of_the_machine(error: BaseException, directory: Path) -> Exception | None:
    """The cause of an error that lies in the machine (no memory, no descriptors, no access), not in the files."""
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else system_error_in(cause)
        if number and number not in (*LACKING, errno.ENOMEM):  # first: tensorstore calls EMFILE "exhausted", too
            return OSError(number, os.strerror(number), str(directory))
        if is_out_of_memory(cause):
            return MemoryError(str(cause))
        cause = cause.__cause__ or cause.__context__
    return None
