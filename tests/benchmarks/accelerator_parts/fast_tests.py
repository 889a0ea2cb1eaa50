"""The fast tests of sae_jax on the device, in processes of their own. Files whose imports are missing are named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from accelerator_parts.figures import Part

ROOT = Path(__file__).parents[3]
FEW_TESTS = ("ops/test_sparse.py", "training/test_loss_metric.py")
MOST_PROCESSES, SHARE_OF_MEMORY = 8, 0.02  # share of the device for each; the arrays of the tests are small
SECONDS_TO_STOP = 8.0


def measure_tests(part: Part, small: bool) -> None:
    if not find_spec("pytest"):
        part.add({"tests": "tests/sae_jax", "skipped": "pytest is not installed"})
        return
    folder = ROOT / "tests" / "sae_jax"
    files = [folder / name for name in FEW_TESTS] if small else sorted(folder.rglob("test_*.py"))
    processes = max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2, len(files)))
    with tempfile.TemporaryDirectory() as directory:
        logs = [Path(directory) / str(number) for number in range(processes)]
        running = [start(files[number::processes], log) for number, log in enumerate(logs)]
        ended = [ended_within(process, part.left() - SECONDS_TO_STOP) for process in running]
        text = "\n".join(log.read_text(errors="replace") for log in logs)
    outcomes = Counter(re.findall(r"^\S+::.* (PASSED|FAILED|SKIPPED|ERROR|XFAIL)\b", text, re.MULTILINE))
    counts = {name.lower(): outcomes[name] for name in ("PASSED", "FAILED", "SKIPPED")}
    part.add({"tests": f"{len(files)} files", **counts, "note": "" if all(ended) else "not finished: no time left"})
    failed = dict.fromkeys(re.findall(r"^(\S+::.*) FAILED\b", text, re.MULTILINE), "failed")
    for test, why in (failed | dict(re.findall(r"^FAILED (.*?) - (.*)$", text, re.MULTILINE))).items():
        part.add({"tests": test, "note": why[:150]})
    for why, names in errors_of(text).items():
        part.add({"tests": f"{len(names)} not run: {', '.join(sorted(names))}", "note": why[:150]})


def start(files: list[Path], log: Path) -> subprocess.Popen:
    flags = ["-v", "-rfE", "--tb=line", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": str(SHARE_OF_MEMORY),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",  # the tests' tolerances are for float32; agreement.py is about TF32
        "COLUMNS": "400",
    }
    with log.open("w") as file:
        command = [sys.executable, "-m", "pytest", *flags, *map(str, files)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


def ended_within(process: subprocess.Popen, seconds: float) -> bool:
    """Return whether the tests end in time. If not, they are interrupted, and pytest tells what failed until then."""
    try:
        process.wait(max(1.0, seconds))
        return True
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return False


def errors_of(text: str) -> dict[str, set[str]]:
    """The names of files that could not be imported, and of tests that could not begin, by the reason."""
    files = re.findall(r"^_+ ERROR collecting (\S+) _+$.*?^E +(.*?)$", text, re.MULTILINE | re.DOTALL)
    errors: dict[str, set[str]] = {}
    for path, why in files + re.findall(r"^ERROR (\S+::.*?) - (.*)$", text, re.MULTILINE):
        errors.setdefault(why, set()).add(path.rpartition("/")[2])
    return errors
