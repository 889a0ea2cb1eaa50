"""Messages of a finished run when it is opened."""

import re
from pathlib import Path

import pytest

from analysis.runs.finished import FinishedRun, can_be_kept
from harvest.errors import InputError
from sae_jax.run_directory import RUNS


def test_a_run_that_cannot_be_written_to_is_reported_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    said: list[str] = []
    assert not any([can_be_kept(tmp_path, said.append) for _ in range(3)])
    assert said == [f"{tmp_path} cannot be written to: the results are not saved"]


@pytest.mark.parametrize("typed, fix", [("firs", "did you mean RUNS/first?"), ("x", "give the directory of a run")])
def test_a_mistyped_run_is_answered_with_the_nearest(tmp_path, typed, fix):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").touch()
    (tmp_path / "firs_of_all").mkdir()  # no run
    message = f"no such run directory: {fix.replace('RUNS', str(tmp_path))}"
    with pytest.raises(InputError, match=re.escape(message)):
        FinishedRun.open(tmp_path / typed)


def test_the_name_of_a_run_in_the_usual_folder_is_answered_with_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (RUNS / "first").mkdir(parents=True)
    (RUNS / "first" / "config.json").touch()
    with pytest.raises(InputError, match=f"^first: there is no such run directory: did you mean {RUNS / 'first'}\\?"):
        FinishedRun.open(Path("first"))
