"""Streamed rows: starts the processes that make them, and reads them block by block from the ring.

Imports neither torch nor jax. Shapes: L sites, N rows, D width of the sites.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from harvest.errors import InputError
from harvest.files import remove_temporary
from harvest.messages import Say, ignore
from harvest.streaming.order import AHEAD
from harvest.streaming.plan import StreamPlan
from harvest.streaming.ring import SUFFIX

MOST_DEATHS = 3  # of a producer, without a shard between them


class Stream:
    """The blocks of a stream, for one reader that reads them in order; it may begin at any block.

    A context manager: its producers run within it. A producer that is killed is started again.
    """

    def __init__(
        self,
        plan: StreamPlan,
        directory: Path,
        producers: int = 1,
        device: str = "auto",
        say: Say = ignore,
    ):
        stores = plan.open_stores()
        self.plan, self.directory, self.say = plan, directory, say
        self.order, self.ring = plan.order(next(iter(stores.values()))), plan.ring(directory, stores)
        self.rows, self.extreme, self.busy_seconds, self.waited_seconds = 0, 0, 0.0, 0.0
        self.arrived: set[int] = set()
        self._trouble: Exception | None = None
        self._changed = threading.Condition()
        arguments = [str(producers), device]
        self._producers = [Producer(directory, [str(number), *arguments], self) for number in range(producers)]

    def __enter__(self) -> Stream:
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_temporary(self.directory)
        for path in set(self.directory.glob(f"*{SUFFIX}")) - set(map(self.ring.path, self.ring.there())):
            path.unlink()  # of other settings
        self.plan.write(self.directory)
        for producer in self._producers:
            producer.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for producer in self._producers:
            producer.end()
        if self.extreme:
            share = f"{self.extreme:,} of {self.rows:,} rows ({self.extreme / self.rows:.3%})"
            self.say(f"{share} were of extreme norm, and were replaced by other rows of their shard")
        if kind is None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def block(self, number: int) -> np.ndarray:
        """The rows of a block, [L, N, D], in a new array. Shards that no later block reads are deleted.

        Raises InputError if a producer cannot go on.
        """
        first = self.order.first_needed(number)
        for shard in self.ring.there():
            if not first <= shard < first + self.order.parts + AHEAD:
                self.ring.remove(shard)
        for producer in self._producers:
            producer.need(first)
        parts = self.order.parts_of(number)
        with self._changed:
            self._changed.wait_for(lambda: self._trouble or self.arrived.issuperset(shard for shard, _, _ in parts))
            if self._trouble:
                raise self._trouble
        read = [self.ring.read(*part) for part in parts]
        order_N = self.order.permutation("block", number, sum(stop - start for _, start, stop in parts))
        return np.stack([np.concatenate(rows)[order_N] for rows in zip(*read, strict=True)])

    @property
    def producer_wait(self) -> float:
        """The share of the time in which the producers waited for room in the ring."""
        return self.waited_seconds / max(self.waited_seconds + self.busy_seconds, 1e-9)

    def fail(self, trouble: Exception) -> None:
        """Let the reader raise this error."""
        with self._changed:
            self._trouble = trouble
            self._changed.notify_all()

    def note(self, record: dict[str, Any]) -> None:
        """Take note of what a producer reports."""
        with self._changed:
            if "trouble" in record:
                self._trouble = InputError(record["trouble"])
            else:
                self.arrived.add(record["shard"])
                self.rows += record["rows"]
                self.extreme += record["extreme"]
                self.busy_seconds += record["busy"]
                self.waited_seconds += record["waited"]
            self._changed.notify_all()


class Producer:
    """A process that makes shards, and the thread that listens to it and starts it again if it is killed."""

    def __init__(self, directory: Path, arguments: Sequence[str], stream: Stream):
        self.log, self.stream = directory / f"producer-{arguments[0]}.log", stream
        self.command = [sys.executable, "-m", "harvest.streaming.producer", str(directory), *arguments]
        self.first = -1
        self.process: subprocess.Popen | None = None
        self.listener: threading.Thread | None = None
        self.ended, self.lock = False, threading.Lock()

    def begin(self) -> None:
        """Start the process, which loads the model and then waits for `need`."""
        self.process, self.listener = self._start(), threading.Thread(target=self._attend, daemon=True)
        self.listener.start()

    def need(self, first: int) -> None:
        """Say which shard is the oldest that is needed."""
        with self.lock:
            if first > self.first:
                self.first = first
                self._send()

    def end(self) -> None:
        with self.lock:
            self.ended = True
            if self.process:
                self.process.kill()
        if self.listener:
            self.listener.join()

    def _start(self) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                bufsize=0,
                start_new_session=True,  # Ctrl-C ends the training, which then ends the producers
            )

    def _send(self) -> None:
        assert self.process and self.process.stdin
        with suppress(BrokenPipeError, ValueError):  # it has died, and hears it when it is started again
            self.process.stdin.write(f"{self.first}\n".encode())

    def _attend(self) -> None:
        try:
            self._listen()
        except Exception as error:  # of any kind: the reader must not wait for a producer without a listener
            self.stream.fail(error)

    def _listen(self) -> None:
        deaths, troubled = 0, False
        while True:
            assert self.process and self.process.stdout
            with self.process as process:
                for line in process.stdout or ():
                    record = json.loads(line)
                    troubled |= "trouble" in record
                    deaths = 0
                    self.stream.note(record)
            status = process.returncode
            with self.lock:
                if self.ended or troubled:
                    return
                deaths += 1
                how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"
                if deaths == MOST_DEATHS:
                    last = "".join(self.log.read_text(errors="replace").splitlines()[-1:])
                    fix = f"see {self.log} ({last}), and continue with --resume"
                    self.stream.note({"trouble": f"the process that runs the language model {how}: {fix}"})
                    return
                self.stream.say(f"the process that runs the language model {how}, and is started again")
                self.process = self._start()
                if self.first >= 0:
                    self._send()
