"""The campaigns of tests/robustness: short ones in the fast tests, long ones in the slow tests."""

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGNS = Path(__file__).parent / "robustness"


def campaign(name: str, folder: Path, *arguments: object) -> str:
    command = [sys.executable, CAMPAIGNS / name, "--folder", folder, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def test_a_few_flips_are_reported_or_harmless(tmp_path):
    quick = [part for name in ("show", "show (begun)", "export", "synthetic") for part in ("--command", name)]
    assert "all 22: " in campaign("flips.py", tmp_path, "--count", 22, *quick)


@pytest.mark.slow
def test_300_flips_are_reported_or_harmless(tmp_path):
    assert "all 300: " in campaign("flips.py", tmp_path, "--count", 300)


def test_concurrent_commands(tmp_path):
    assert "no failure" in campaign("concurrency.py", tmp_path, "--rounds", 1, "--only", "frontier", "train")


@pytest.mark.slow
def test_35_rounds_of_concurrent_commands(tmp_path):
    """Five rounds of each of seven commands."""
    assert "no failure" in campaign("concurrency.py", tmp_path, "--rounds", 5)


@pytest.mark.slow
def test_100_malformed_runs_are_reported_or_harmless(tmp_path):
    assert "; 0 failures" in campaign("received.py", tmp_path, "--count", 100)


@pytest.mark.slow
def test_100_kills_change_no_result(tmp_path):
    assert "100/100 " in campaign("kills.py", tmp_path, "--count", 100)
