"""Orbax: save and restore the whole state of a run (weights, optimizer, keys; the step is the feed's cursor too)."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from harvest.errors import InputError
from sae_jax.population import State

METADATA_BYTES = 1 << 20  # about; of what Orbax writes beside the arrays

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells at length what it raises, too, or copes with


class Checkpoints:
    """The newest checkpoints of a run, written in the background, each whole or not there.

    `save` and `close` raise OSError where there is no room, also for what was being written since the last `save`.
    """

    def __init__(self, directory: Path, every_seconds: float):
        self.every_seconds = every_seconds
        self.saved_at = time.monotonic()
        self.directory = directory
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self.manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.every_seconds

    def save(self, step: int, states: list[State]) -> None:
        """Hand over states on the host: the next block writes into the device's buffers while Orbax still reads."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(states)) + METADATA_BYTES
        if shutil.disk_usage(self.directory).free < needed:  # Orbax would find out with a screen full of tracebacks
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))
        with self._os_errors():
            self.manager.save(step, args=ocp.args.StandardSave(states))
        self.saved_at = time.monotonic()

    def restore(self, start: list[State], say: Callable[[str], None]) -> tuple[int, list[State]]:
        """(step, states) of the newest checkpoint that can be read; (0, start) where there is none.

        Raises InputError where there are some, all damaged.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, start)
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return step, self.manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as e:  # of the formats' readers, whatever is damaged
                say(f"the checkpoint of step {step:,} cannot be read ({type(e).__name__})")
                self.manager.delete(step)
        if steps:
            raise InputError(f"no checkpoint in {self.directory} can be read: add --force to start again")
        return 0, start

    def close(self) -> None:
        with self._os_errors():
            self.manager.wait_until_finished()
        self.manager.close()

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        """What the system answered, as an OSError: tensorstore only writes its number into a ValueError's text."""
        try:
            yield
        except ValueError as e:
            if number := re.search(r"os_error_code='(\d+)'", str(e)):
                raise OSError(int(number[1]), os.strerror(int(number[1])), str(self.directory)) from e
            raise
