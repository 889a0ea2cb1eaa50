"""Joining the processes of a training, and what the user is told when one of them is lost.

JAX's coordination service ends every process when one of them is gone, without a chance for Python to say so, and with
a screen of native messages. These messages go to a file instead, and a small process that outlives this one says in a
line what happened (`last_words.py`).
"""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from harvest.errors import InputError
from harvest.team import ALONE, Team

JOIN_SECONDS = 20  # until all processes must have joined
HEARTBEAT_SECONDS = 10  # without a sign of life after which a process counts as lost
DETECTED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # numbers of processes that JAX finds by itself
CONNECTIONS = ("Gloo", "NCCL", "coordination service")  # in the messages of broken connections
PACKAGES = ("sae-jax", "jax", "jaxlib", "flax", "optax", "numpy")


class Cluster(NamedTuple):
    """The processes of a training. Without a coordinator, JAX finds it, the number and the id by itself."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __str__(self) -> str:
        return f"process {self.process_id} of {self.num_processes}" if self.coordinator else "a process of the cluster"


def cluster_asked(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Cluster | None:
    """The cluster of the flags or of the environment; None for a single process. Raises InputError for other flags.

    `num_processes` 1 alone makes a process of a cluster's job train by itself.
    """
    flags = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    given = [name for name, value in flags.items() if value is not None]
    if given == ["--num-processes"] and num_processes == 1:
        return None
    if not given:
        return Cluster() if any(int(os.environ.get(name, 1)) > 1 for name in DETECTED) else None
    if missing := [name for name in flags if name not in given]:
        raise InputError(f"{given[0]} needs {' and '.join(missing)} as well: give all three, or none of them")
    assert coordinator is not None and num_processes is not None and process_id is not None
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise InputError(f"--coordinator {coordinator}: give the host and a free port of process 0, as in host:1234")
    if not process_id < num_processes:
        raise InputError(
            f"--process-id {process_id}: the ids of {num_processes} processes are 0 to {num_processes - 1}"
        )
    return Cluster(coordinator, num_processes, process_id) if num_processes > 1 else None


@contextmanager
def joined(cluster: Cluster | None, run: Path, settings: Mapping[str, object]) -> Iterator[Team]:
    """Let this process work together with the others inside of the context. JAX must not have computed anything yet.

    Raises InputError if they cannot join, or if their `settings` or versions differ. After an exception inside of the
    context, the process has to end with `os._exit`: JAX would wait for the others at the usual end.
    """
    if cluster is None:
        yield ALONE
        return
    number, log = tempfile.mkstemp(prefix="sae-jax-", suffix=".log")
    os.close(number)
    with only_python_prints("stderr", log):
        words = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("last_words.py")), log],
            stdin=subprocess.PIPE, stderr=sys.stderr, text=True, start_new_session=True,
        )  # fmt: skip

        def will_say(text: str) -> None:
            assert words.stdin
            print(text, file=words.stdin, flush=True)

        try:
            where = cluster.coordinator or "process 0"
            will_say(f"{cluster}: not all processes have come to {where} within {JOIN_SECONDS} seconds: "
                     "start all of them with the same --coordinator, process 0 on its host")  # fmt: skip
            join(cluster)
            again = f"what {run} has saved is kept; start all processes again, with --resume if training had begun"
            will_say(f"{cluster} was killed, or ended because another process is gone: {again}")
            from sae_jax.training.processes import team

            here = {"Python": ".".join(platform.python_version_tuple()[:2]), **settings}
            team().refuse_differences(here | {name: version(name) for name in PACKAGES})
            try:
                yield team()
            except Exception as error:
                if not any(name in str(error) for name in CONNECTIONS):
                    raise
                time.sleep(2 * HEARTBEAT_SECONDS)  # JAX is about to find which process is gone, and to end this one
                raise InputError(f"{cluster} cannot reach another process: {again}") from error
        finally:
            will_say("")


def join(cluster: Cluster) -> None:
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from Python
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU also has to hold the language model
    if cluster.coordinator and cluster.process_id == 0:
        refuse_taken_port(cluster.coordinator)
    try:
        jax.distributed.initialize(
            *cluster, initialization_timeout=JOIN_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{cluster} cannot join the others ({reason}): check --coordinator") from None


def refuse_taken_port(coordinator: str) -> None:
    """Raise InputError if this machine already uses the port. JAX may crash in native code if it finds that out."""
    both = socket.has_dualstack_ipv6()
    family, port = socket.AF_INET6 if both else socket.AF_INET, int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--coordinator {coordinator}: its port is in use ({error}): choose another") from None


@contextmanager
def only_python_prints(stream: str, into: str) -> Iterator[None]:
    """Send what native code prints on a stream (stdout or stderr) into a file. What Python prints stays."""
    python, number = getattr(sys, stream), 1 if stream == "stdout" else 2
    python.flush()
    shown = os.dup(number)
    with open(into, "ab") as file:
        os.dup2(file.fileno(), number)
    setattr(sys, stream, os.fdopen(shown, "w", buffering=1, errors="backslashreplace", closefd=False))
    try:
        yield
    finally:
        getattr(sys, stream).flush()
        setattr(sys, stream, python)
        os.dup2(shown, number)
        os.close(shown)
