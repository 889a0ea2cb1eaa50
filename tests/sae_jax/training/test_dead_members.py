"""A member none of whose features fires: it is reported, and the analyses of the others do not change."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from command_line import THREE_KINDS, environment, shared_cache, trained

import main
from analysis.comparison import shared_features
from analysis.features.statistics import Features
from analysis.pages import feature as feature_page
from analysis.plots.comparison import shared_features_chart
from analysis.runs.finished import FinishedRun
from analysis.ui.dashboard import state
from harvest.files import read_json, write_json
from harvest.model.tokenizer import load_tokenizer
from sae_jax.formats import save_dictionary

DEAD, SISTER = "relu-f48-l8-lr1e-3-s0", "relu-f48-l8-lr1e-3-s1"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache) -> FinishedRun:
    """A trained run in which a bias silences every feature of one member."""
    run = trained(tmp_path_factory.mktemp("dead") / "run", cache, *THREE_KINDS, "--epochs", "2", "--seed", "0", "1")
    alive = run.dictionary(DEAD)
    silent = replace(alive, tensors={**alive.tensors, "b_enc": np.full(48, -1e6, np.float32)})
    save_dictionary(silent, run.path / "members" / DEAD)
    run.members[DEAD]["metrics"] |= {"l0": 0.0, "dead_fraction": 1.0}
    write_json(run.path / "results.json", run.results)
    return FinishedRun.open(run.path)


@pytest.fixture(scope="module")
def command(cache):
    """The output of a command."""

    def said(*argv: object) -> str:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
            for name, value in environment(cache).items():
                patch.setenv(name, value)
            assert main.run_as_command([*map(str, argv)]) == 0
        return out.getvalue()

    return said


@pytest.fixture(scope="module")
def studied(run, cache, command) -> tuple[FinishedRun, str]:
    return run, command("study", run.path, "--documents", "800", "--cache-dir", cache)


def test_the_study_measures_the_others(studied):
    run, _ = studied
    record = read_json(run.path / "analysis" / "study.json", "")
    values, others = record["values"], set(run.members) - {DEAD}
    assert values[DEAD]["dead"] == 1 and values[DEAD]["found_again"] is None
    assert {name for name in others if values[name]["found_again"] is not None} == others - {SISTER}
    relu = record["answers"][0]["table"]["relu"]
    assert relu["explained_variance"]["n"] == 2 and relu["rare"]["n"] == 1


def test_its_family_is_mapped_by_a_member_that_lives(studied):
    run, said = studied
    assert (run.path / "analysis" / f"clusters-{SISTER}.json").exists() or f"{SISTER}: too few living" in said
    assert f"{DEAD}: too few" not in said


def test_the_comparison_is_read_again_and_names_it(studied):
    run, _ = studied
    compared = shared_features.read_shared_features(run.path / "analysis", list(run.members))
    assert compared.dead == (DEAD,) and set(compared.members) == set(run.members) - {DEAD}
    assert DEAD in json.dumps(shared_features_chart(compared).to_dict())


def test_the_dashboard_finds_a_comparison_that_was_computed_later(run, studied, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py", str(tmp_path), "auto"])  # as `main.py dashboard` starts it
    (tmp_path / "analysis").mkdir()
    for name in ("config.json", "results.json"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    assert state.compared(str(tmp_path)) is None
    for path in (run.path / "analysis").glob("comparison.*"):
        (tmp_path / "analysis" / path.name).write_bytes(path.read_bytes())
    assert state.compared(str(tmp_path)).dead == (DEAD,)


def test_its_features_have_pages_without_matches(studied, cache):
    run, _ = studied
    compared = shared_features.read_shared_features(run.path / "analysis", list(run.members))
    of = Features.load(run.path / "analysis" / "features" / f"{DEAD}.npz")
    tokenizer, store = load_tokenizer(run.model_location), run.store(run.site(DEAD), cache)
    page = feature_page.compute_feature_page(run, DEAD, 3, of, run.dictionary(DEAD), store, tokenizer, compared)
    assert not of.alive_F[3] and page.twins == [] and page.found_again is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [
        ("report",),
        ("show", "--pareto"),
        ("saebench", "--documents", "800", "--metrics", "probing"),
        ("export", "--member", DEAD, "--neuronpedia", "--to", "TO"),
        ("find-feature", "the sea"),
    ],
    ids=lambda argv: argv[0],
)
def test_every_command_works_on_such_a_run(studied, command, cache, tmp_path, argv):
    run, _ = studied
    name, *flags = [str(tmp_path / "to") if word == "TO" else word for word in argv]
    takes_cache = name in ("report", "export", "find-feature")
    command(name, run.path, *flags, *(("--cache-dir", cache) if takes_cache else ()))
