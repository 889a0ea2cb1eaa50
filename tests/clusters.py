"""Several processes of `python main.py` on this machine that train one run together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from command_line import BUNDLED, ROOT, environment

SMALL = (*BUNDLED, "--n-samples", "100", "--seq-len", "10", "--activation", "relu", "topk", "--hidden-dim", "48")
SMALL += ("--target-l0", "8", "--k", "8", "--block-steps", "4", "--ce-windows", "0", "--snapshots", "2")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(number: int, count: int, port: int, cache: Path, *argv: object, devices: int = 1) -> subprocess.Popen:
    """Process `number` of a cluster of `count` processes, with so many virtual devices each."""
    command = [sys.executable, ROOT / "main.py", *argv, "--cache-dir", cache]
    command += ["--coordinator", f"127.0.0.1:{port}", "--num-processes", count, "--process-id", number]
    variables = os.environ | environment(cache) | {"JAX_NUM_CPU_DEVICES": str(devices), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(part) for part in command], env=variables, **pipes)


def start_all(count: int, cache: Path, *argv: object, devices: int = 1) -> list[subprocess.Popen]:
    port = free_port()
    return [start(number, count, port, cache, *argv, devices=devices) for number in range(count)]


def ended(processes: list[subprocess.Popen], seconds: float = 300) -> list[tuple[int, str]]:
    """(exit status, what it said on standard error) of each process."""
    said = [process.communicate(timeout=seconds)[1] for process in processes]
    return [(process.returncode, err) for process, err in zip(processes, said, strict=True)]
