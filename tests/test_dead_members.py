"""One member of which no feature ever fires: it is named, and every analysis of the others is as it would be."""

import json

import pytest
from command_line import BUNDLED, environment, shared_cache, trained

import main
from analysis import comparison, feature_page, frontier
from analysis.faces.dashboard import opened
from analysis.feature_statistics import Features
from analysis.run import FinishedRun
from harvest.files import read_json
from harvest.tokenizer import load_tokenizer

MEMBERS = [{"target_l0": 4}, {"target_l0": 8}, {"activation": "topk", "k": 8}]
MEMBERS += [{"activation": "gated", "sparsity": 1e6, "seed": 0}]  # a penalty that leaves nothing alive
DEAD = "gated-f48-s1000000-lr1e-2-s0-dead_none"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache) -> FinishedRun:
    folder = tmp_path_factory.mktemp("dead")
    (folder / "members.json").write_text(json.dumps(MEMBERS))
    argv = ("--members", folder / "members.json", "--seed", "0", "1", "--dead-rule", "none", "--lr", "0.01")
    small = ("--n-samples", "300", "--hidden-dim", "48", "--epochs", "3")
    return trained(folder / "run", cache, *BUNDLED, *small, *argv)


@pytest.fixture
def command(cache, monkeypatch, capsys):
    """What a command says."""
    for name, value in environment(cache).items():
        monkeypatch.setenv(name, value)

    def said(*argv: object) -> str:
        assert main.run_as_command([*map(str, argv)]) == 0
        return capsys.readouterr().out

    return said


@pytest.fixture
def studied(run, cache, command) -> tuple[FinishedRun, str]:
    return run, command("study", run.path, "--documents", "800", "--cache-dir", cache)


def test_it_is_dead_and_the_others_are_not(run):
    l0s = {name: member["metrics"]["l0"] for name, member in run.members.items()}
    assert l0s.pop(DEAD) == 0 and len(l0s) == 6 and min(l0s.values()) > 1


def test_the_study_measures_the_others(studied):
    run, _ = studied
    record = read_json(run.path / "analysis" / "study.json", "")
    values = record["values"]
    others = [name for name in run.members if name != DEAD]
    assert values[DEAD]["dead"] == 1 and values[DEAD]["absorption"] is None and values[DEAD]["found_again"] is None
    assert all(values[name]["found_again"] is not None for name in others)
    assert all(values[name]["absorption"] is not None for name in others)
    assert any(DEAD in note and "absorption" in note for note in record["notes"])
    assert list(record["answers"][0]["table"]) == [
        "relu, L0 4",
        "relu, L0 8",
        "topk, L0 8",
        "gated, coefficient 1000000",
    ]


def test_the_comparison_is_read_again_and_names_it(studied):
    run, _ = studied
    compared = comparison.read(run.path / "analysis", list(run.members))
    assert compared.dead == (DEAD,) and set(compared.members) == set(run.members) - {DEAD}
    assert DEAD in json.dumps(comparison.figure(compared).to_dict())


def test_the_dashboard_finds_a_comparison_that_was_made_after_it_looked(run, studied, tmp_path):
    (tmp_path / "analysis").mkdir()
    for name in ("config.json", "results.json"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    assert opened.compared(str(tmp_path)) is None
    for path in (run.path / "analysis").glob("comparison.*"):
        (tmp_path / "analysis" / path.name).write_bytes(path.read_bytes())
    assert opened.compared(str(tmp_path)).dead == (DEAD,)


def test_its_features_have_pages_without_matches(studied, cache):
    run, _ = studied
    compared = comparison.read(run.path / "analysis", list(run.members))
    of = Features.load(run.path / "analysis" / "features" / f"{DEAD}.npz")
    tokenizer, store = load_tokenizer(run.model_location), run.store(run.site(DEAD), cache)
    page = feature_page.compute(run, DEAD, 3, of, run.dictionary(DEAD), store, tokenizer, compared)
    assert not page.fires and page.twins == [] and page.found_again is None


def test_the_frontier_draws_the_others_and_says_so(run):
    found = frontier.compute(run.path)
    assert len(found.points) == 4 and len(found.drawn) == 3
    drawn = json.dumps(frontier.figure(found).to_dict())
    assert "not drawn: 1 at L0 0, where no feature fires" in drawn and '"gated"' not in drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [
        ("report",),
        ("show", "--pareto"),
        ("frontier",),
        ("saebench", "--documents", "800", "--metrics", "probing", "absorption"),
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
