"""The wheel works where it is installed, in a folder whose own modules have the names of ours."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from command_line import ROOT, environment, shared_cache

PACKAGES, FILES = ("analysis", "harvest", "sae_jax"), ("main.py", "pyproject.toml", "README.md", "LICENSE")
SMOKE = ("--model-name", "bundled", "--dataset", "bundled", "--n-samples", "100", "--seq-len", "10", "--epochs", "2")


def succeeded(*command: object, **options) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of the programs of a new environment with the wheel.

    Its dependencies are those of the environment of the tests, because installing torch and JAX again takes minutes:
    a .pth file appends their folder to the new environment's path. Python reads no .pth files in folders that were
    added in this way, so an editable installation of the project is not found there.
    """
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:  # in a copy, because a build leaves files in its folder
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / "source")
    pip = sys.executable, "-m", "pip", "--disable-pip-version-check"
    succeeded(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source")
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "new")
    new = folder / "new" / "bin" / "python"
    succeeded(*pip, "--python", new, "install", "--no-deps", "--no-index", wheel)
    (packages,) = (folder / "new" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "new" / "bin"


@pytest.mark.slow
@pytest.mark.parametrize("program", [("sae-jax",), ("python", "-m", "sae_jax")], ids=["sae-jax", "module"])
def test_the_main_job_runs_in_a_folder_with_modules_of_our_names(program, installed, tmp_path, tmp_path_factory):
    for name in ("analysis.py", "main.py", "harvest.py", "datasets.py"):
        (tmp_path / name).write_text(f"raise SystemExit('the {name} of the user was imported')\n")
    env = os.environ | environment(shared_cache(tmp_path_factory)) | {"HOME": str(tmp_path)}
    env.pop("PYTHONPATH", None)
    shown = succeeded(installed / program[0], *program[1:], *SMOKE, cwd=tmp_path, env=env)
    assert "EXPERIMENT RESULTS" in shown
    (run,) = (tmp_path / "runs").iterdir()
    assert list(run.glob("members/*/sae_weights.safetensors"))


@pytest.mark.slow
def test_the_wheel_has_the_files_that_are_read_and_no_others(installed):
    (packages,) = (installed.parent / "lib").glob("python*/site-packages")
    (record,) = packages.glob("sae_jax-*/RECORD")
    tops = {Path(line.split(",")[0]).parts[0] for line in record.read_text().splitlines()}
    ours = {top for top in tops if "dist-info" not in top} - {"..", "__pycache__"}
    assert ours == {*PACKAGES, "main.py"}
    for name in ("harvest/bundled/model/model.safetensors", "analysis/ui/report/templates/report.html"):
        assert (packages / name).exists(), name
