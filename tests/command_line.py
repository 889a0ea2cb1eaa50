"""`python main.py` in a separate process, which does not contact a hub and uses the cache of the tests."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import main
from analysis.runs.finished import FinishedRun

ROOT = Path(__file__).parents[1]
BUNDLED = ("--model-name", "bundled", "--dataset", "bundled")
# All runs of three kinds have these shapes, so that they share one compiled program in the cache.
THREE_KINDS = (*BUNDLED, "--n-samples", "100", "--seq-len", "10", "--activation", "relu", "jump_relu", "topk")
THREE_KINDS += ("--hidden-dim", "48", "--target-l0", "8", "--k", "8", "--block-steps", "4", "--dead-threshold", "0.1")


def shared_cache(tmp_path_factory) -> Path:
    """Activations and compiled programs of the whole test session."""
    return tmp_path_factory.getbasetemp() / "cache"


def environment(cache: Path) -> dict[str, str]:
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(cache / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {"HF_HUB_OFFLINE": "1", **compiled}


def start(*argv: object, cache: Path, script: str | None = None, **options) -> subprocess.Popen:
    """Start `python main.py ARGV`, or a script with these arguments. Both streams are captured."""
    command = [sys.executable, ROOT / "main.py"] if script is None else [sys.executable, "-c", script]
    command += [*map(str, argv), "--cache-dir", cache]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | environment(cache), **pipes, **options)


def typed(*argv: object, cache: Path, script: str | None = None, **options) -> subprocess.CompletedProcess:
    """Run `python main.py ARGV`, or a script, to its end."""
    process = start(*argv, cache=cache, script=script, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_until(step: int, run: Path, *argv: object, cache: Path) -> subprocess.Popen:
    """Start or resume a run. Returns when it has reported this step."""
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    process = start(*argv, "--run-dir", run, cache=cache)
    while process.poll() is None:
        if metrics.exists() and metrics.stat().st_mtime_ns > before:
            whole_lines = metrics.read_text().split("\n")[:-1]
            if whole_lines and json.loads(whole_lines[-1])["step"] >= step:
                return process
        time.sleep(0.005)
    raise AssertionError(f"ended before step {step}: {process.communicate()}")


def trained(path: Path, cache: Path, *argv: object) -> FinishedRun:
    """A run that is trained in this process, without loss recovered."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(cache).items():
            patch.setenv(name, value)
        always = ("--ce-windows", "0", "--quiet", "--run-dir", path, "--cache-dir", cache)
        assert main.run_as_command([*map(str, (*argv, *always))]) == 0
    return FinishedRun.open(path)


def files_of(directory: Path) -> dict[str, tuple[bytes, int]]:
    """The content and modification time of every file."""
    files = [p for p in sorted(directory.rglob("*")) if p.is_file()]
    return {str(p.relative_to(directory)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}
