"""Emergence of planted features, intervals over seeds, and the command `study` with its files."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import BUNDLED, environment, shared_cache, trained, typed
from populations import SITES
from scipy import stats

import main
from analysis.comparison import emergence
from analysis.plots.style import style_of
from analysis.runs.finished import FinishedRun
from analysis.stats import Estimate, over_seeds
from analysis.study import measures
from analysis.study.charts import answer_charts
from analysis.study.measures import PopulationMeasures, values_of
from analysis.study.questions import behaviour_during_training, frequency_and_specialization, interpretability
from analysis.study.tables import equally_sparse
from harvest.errors import InputError
from harvest.files import read_json, write_json
from sae_jax.config import TrainConfig
from sae_jax.members import members_of
from sae_jax.training.snapshots import Snapshot

STEPS = (0, 10, 30, 100, 300, 1000)
F, D = 40, 64


def unit(x_FxD):
    return x_FxD / np.linalg.norm(x_FxD, axis=1, keepdims=True)


@pytest.fixture
def planted():
    """(snapshots, steps): each feature keeps its final direction from its step on; frequent features emerge earlier."""
    rng = np.random.default_rng(0)
    final_FxD, noise = unit(rng.standard_normal((F, D))), lambda: unit(rng.standard_normal((F, D)))
    emerged_F = np.array(STEPS)[rng.integers(1, len(STEPS), F)]
    snapshots = {}
    for step in STEPS:
        direction_FxD = np.where((emerged_F <= step)[:, None], final_FxD, noise())
        density_F = np.where(emerged_F <= step, 0.5 / np.maximum(emerged_F, 1), 0)
        snapshots[step] = Snapshot(direction_FxD, np.ones(F), density_F)
    return snapshots, emerged_F


def features_with(density_F, rng):
    of = type("Features", (), {})()
    of.density_F, of.alive_F = density_F, density_F > 0
    of.mean_F, of.together_phi_FxJ = rng.random(len(density_F)), rng.random((len(density_F), 3))
    return of


def test_a_feature_emerges_where_it_was_planted(planted):
    snapshots, emerged_F = planted
    found = emergence.compute_emergence(snapshots, features_with(snapshots[1000].density, np.random.default_rng(1)))
    np.testing.assert_array_equal(found.emerged_F, emerged_F)
    np.testing.assert_allclose(found.recognizable_S, [(emerged_F <= step).mean() for step in STEPS])
    assert found.births_S.tolist() == [0, *((emerged_F == step).sum() for step in STEPS[1:])]
    assert not found.deaths_S.any()
    assert found.predictors["frequency"] == pytest.approx(-1)  # by construction
    assert all(abs(found.predictors[name]) < 0.4 for name in ("norm", "co-occurrence"))


def test_a_direction_with_two_final_features_is_a_split(planted):
    snapshots, _ = planted
    final_FxD, early = snapshots[1000].direction, snapshots[0].direction.copy()
    a, b = np.argwhere((final_FxD @ final_FxD.T > 0.1) & ~np.eye(F, dtype=bool))[0]
    parent_D = unit(final_FxD[[a]] + final_FxD[[b]])[0]
    early[0] = parent_D
    snapshots[0] = snapshots[0]._replace(direction=early)
    alive = features_with(np.full(F, 0.1), np.random.default_rng(1))
    assert emergence.compute_emergence(snapshots, alive).splits_S[0] == 1


def test_a_feature_emerges_after_it_was_last_unrecognizable(planted):
    snapshots, emerged_F = planted
    feature = int(np.flatnonzero(emerged_F == 10)[0])
    lost = snapshots[100].direction.copy()
    lost[feature] = unit(np.random.default_rng(5).standard_normal((1, D)))[0]
    snapshots[100] = snapshots[100]._replace(direction=lost)
    alive = features_with(np.full(F, 0.1), np.random.default_rng(1))
    assert emergence.compute_emergence(snapshots, alive).emerged_F[feature] == 300


def test_emergence_needs_snapshots(planted):
    snapshots, _ = planted
    with pytest.raises(InputError, match="--snapshots"):
        emergence.compute_emergence({0: snapshots[0], 1000: snapshots[1000]}, None)


def test_an_interval_over_seeds_is_that_of_students_t():
    values = [1.0, 2.0, 4.0]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = over_seeds([*values, None])
    assert (found.mean, found.n) == (pytest.approx(7 / 3), 3)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert over_seeds([3.0, 5.0]) == Estimate(4.0, None, None, 2) and over_seeds([None]).mean is None
    assert over_seeds(values, tried=3).low == pytest.approx(
        stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / 3).low
    )


# Answers.


def gathered_of(values, frequency=(None, None)):
    """Measures of one family of topk members with a seed for each of the values, which all measures have."""
    config = TrainConfig(activation="topk", hidden_dim=8, k=4, seed=tuple(range(len(values))))
    members = {member.id: asdict(replace(member, id="")) for member in members_of(config, SITES)}
    names = list(members)
    every = [*measures.MEASURES, *(f"{score}: form" for score in measures.LABEL_MEASURES)]
    return PopulationMeasures(
        run=None,
        settings=members,
        features={name: SimpleNamespace(labels={"form": ["a", "b"]}) for name in names},
        values={name: dict.fromkeys(every, value) for name, value in zip(names, values, strict=True)},
        frequency={name: {"form": frequency} for name in names},
        trajectories={},
        decoders={},
        compared=None,
        notes=[],
    )


def two_families(first, second):
    """Measures of two families of topk members, with k 4 and 8."""
    config = TrainConfig(activation="topk", hidden_dim=8, k=(4, 8), seed=(0, 1, 2))
    members = {member.id: asdict(replace(member, id="")) for member in members_of(config, SITES)}
    one = gathered_of([0.0] * 3)
    every = next(iter(one.values.values())).keys()
    values = {
        name: dict.fromkeys(every, (first if member["k"] == 4 else second)[member["seed"]])
        for name, member in members.items()
    }
    features = {name: SimpleNamespace(labels={"form": ["a", "b"]}) for name in members}
    return replace(one, settings=members, values=values, features=features)


def test_only_intervals_separate_a_run_from_its_control():
    trained = gathered_of([0.80, 0.81, 0.82])
    cases: list[tuple[str, list]] = [
        ("All families are above the model with shuffled weights, ", [0.60, 0.61, 0.62]),
        ("All families are below the model with shuffled weights, ", [0.90, 0.91, 0.92]),
        ("The intervals of the two models overlap: ", [0.1, 0.7, 0.9]),
        ("No interval for at least one model: ", [0.6]),  # one seed
        ("No interval for at least one model: ", [None, None]),  # not measured
    ]
    for side, values in cases:
        (verdict,) = found(interpretability(trained, gathered_of(values)), *(other for other, _ in cases))
        assert verdict.startswith(side) and ": probe on one feature" in verdict


def found(answer, *parts) -> list[str]:
    return [finding for finding in answer.findings if any(part in finding for part in parts)]


def test_the_answer_on_frequency_is_about_the_run_and_not_its_control():
    answer = frequency_and_specialization(gathered_of([0.5, 0.5], (0.1, 0.1)), gathered_of([0.5, 0.5], (0.9, 0.9)))
    assert "frequency is weak (rank correlation over chance; the strongest is 0.10)" in answer.answer
    negative = frequency_and_specialization(gathered_of([0.5, 0.5], (0.1, -0.2)), None)
    assert "the strongest is -0.2" in negative.answer
    assert answer.table["random weights, topk"]["form, over chance"] == Estimate(0.9, None, None, 2)


def test_a_difference_that_may_be_chance_is_no_difference():
    answer = interpretability(two_families([0.70, 0.74, 0.72], [0.73, 0.71, 0.73]), None).answer
    assert answer == (
        "No clear difference between families of about equal L0: probe on one feature (chance: 0.5); absorption (less "
        "is better); features with 90% of firings on one token (of those with 100 or more); specialization over "
        "chance: form."
    )
    found = interpretability(two_families([0.90, 0.91, 0.92], [0.60, 0.61, 0.62]), None)
    assert found.answer.startswith("Probe on one feature (chance: 0.5). At unequal L0")
    assert "no fair comparison: highest for topk, k 4, lowest for topk, k 8, a difference of 0.3" in found.answer
    one = two_families([0.90, 0.91, 0.92], [0.60, 0.61, 0.62])
    for name in one.families["topk, k 8"]:
        one.values[name]["one_token"] = None
    assert "Measured for one family only: features with 90%" in " ".join(interpretability(one, None).findings)


def test_digits_are_those_that_the_interval_allows():
    assert str(Estimate(0.93123, 0.9250, 0.9375, 3)) == "0.931 [0.925, 0.938]"
    assert str(Estimate(0.0000123, 0.0000101, 0.0000145, 3)) == "0.000012 [0.000010, 0.000015]"
    assert str(Estimate(0.5, -0.2, 1.2, 3)) == "0.5 [-0.2, 1.2]"
    assert str(Estimate(0.03, 0.0021, 0.0579, 3)) == "0.030 [0.002, 0.058]", "an interval without 0 does not show it"
    assert str(Estimate(156.0, 156.0, 156.0, 3)) == "156"
    assert str(Estimate(0.125, 0.125 - 1e-9, 0.125 + 1e-9, 3)) == "0.125"
    assert str(Estimate(0.0, 0.0, 0.0, 3)) == "0" and str(Estimate(0.12345, None, None, 2)) == "0.123"


def test_panels_share_an_axis_with_a_zero_line_and_zero_panels_are_left_out():
    some, zero = Estimate(0.4, 0.2, 0.6, 3), Estimate(0.0, 0.0, 0.0, 3)
    table = {family: {"topic, raw": some, "form, raw": some, "dead": zero} for family in ("relu", "topk")}
    spec = answer_charts(3, table, {"relu": "relu", "topk": "topk"})["question-3"].to_dict()
    rows = spec["data"]["values"] if "values" in spec.get("data", {}) else next(iter(spec["datasets"].values()))
    assert {row["column"] for row in rows} == {"topic, raw", "form, raw"} and all(row["zero"] == 0 for row in rows)
    colours = json.dumps(spec)
    assert all(style_of(kind)[0] in colours for kind in ("relu", "topk")), "as in all other figures"
    assert spec["resolve"]["axis"]["x"] == "independent", "no axis stands where the last row has no panel"
    assert spec["resolve"]["scale"]["x"] == "shared" and "not drawn: dead" in " ".join(spec["title"]["subtitle"])
    assert answer_charts(4, {"relu": {"births": zero}}) == {}


def test_answers_claim_nothing_without_snapshots_or_activity():
    behaviour = behaviour_during_training(gathered_of([0.5]))
    assert behaviour.answer.startswith("Features cannot be followed in this run")
    assert behaviour.findings[0].startswith("Not followed: topk: fewer than three snapshots")
    assert equally_sparse(gathered_of([0.0])) == [("At L0 0.0", ["topk"])]


def test_families_are_compared_with_those_of_about_equal_l0():
    config = TrainConfig(activation="topk", hidden_dim=64, k=(4, 8, 15, 16, 32, 33), seed=(0, 1, 2))
    members = {member.id: asdict(replace(member, id="")) for member in members_of(config, SITES)}
    every = next(iter(gathered_of([0.0]).values.values())).keys()
    values = {
        name: {measure: float(of["k"]) if measure == "l0" else of["k"] / 100 + of["seed"] / 1e4 for measure in every}
        for name, of in members.items()
    }
    features = {name: SimpleNamespace(labels={}) for name in members}
    found = replace(gathered_of([0.0]), settings=members, values=values, features=features)
    assert [where for where, _ in equally_sparse(found)] == ["At L0 15.0 to 16.0", "At L0 32.0 to 33.0"]
    answer = interpretability(found, None)
    assert answer.answer == "4 of 4 comparisons show a clear difference. Highest: topk, k 16 (2), topk, k 33 (2)."
    low, high = answer.findings[0].split("; ")
    assert low.startswith("Probe on one feature (chance: 0.5). At L0 15.0 to 16.0: highest for topk, k 16, lowest for ")
    assert high.startswith("At L0 32.0 to 33.0: highest for topk, k 33, lowest for topk, k 32, a difference of ")


def test_a_feature_with_few_firings_is_no_single_token_feature():
    of = SimpleNamespace(
        rows=1000,
        density_F=np.array([0.001, 0.5, 0.2, 0]),  # these are 1, 500, 200 and 0 firings
        alive_F=np.array([True, True, True, False]),
        token_share_F=np.array([1, 0.95, 0.1, 0]),
        labels={},
    )
    bench = {"sparse_probing": {"a": {}}, "absorption": {}}
    bench["sparse_probing"]["a"]["topic"] = {"accuracy": {"1": 0.7}}
    member = {"id": "a", "metrics": {"explained_variance": 0.8, "l0": 3.0}}
    assert values_of(member, of, bench, None, has_tokens=False)["one_token"] is None
    values = values_of(member, of, bench, None)
    assert values["one_token"] == 0.5 and values["absorption"] is None and values["ce_recovered"] is None


# The command.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cache = shared_cache(tmp_path_factory)
    run = tmp_path_factory.mktemp("runs") / "population"
    small = ("--n-samples", "300", "--hidden-dim", "48", "--target-l0", "8", "--k", "8", "--epochs", "3")
    done = typed(*BUNDLED, *small, "--activation", "relu", "topk", "--seed", "0", "1", "--run-dir", run, cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    return run, cache


@pytest.fixture(scope="module")
def studied(run):
    run, cache = run
    done = typed("study", run, "--documents", "800", cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    return run, cache, done.stdout


def test_five_questions_are_answered_with_intervals_from_the_results(studied):
    run, _, said = studied
    record = json.loads((run / "analysis" / "study.json").read_text())
    assert len(record["answers"]) == 5
    for answer in record["answers"]:
        assert answer["question"] in said and answer["answer"] and answer["not_shown"]
        assert said.count(answer["uncertainty"]) == 1, "said once, because it holds for all answers"
        for name in answer["figures"]:
            assert (run / "figures" / f"{name}.svg").stat().st_size > 1000
    results = {m["id"]: m["metrics"] for m in json.loads((run / "results.json").read_text())["members"]}
    expected = over_seeds([results[f"relu-f48-l8-lr1e-3-s{seed}"]["explained_variance"] for seed in (0, 1)])
    found = record["answers"][0]["table"]["relu"]["explained_variance"]
    assert found == pytest.approx({"mean": expected.mean, "low": expected.low, "high": expected.high, "n": 2})


def test_nothing_is_computed_twice(studied):
    run, cache, said = studied
    kept = [*(run / "analysis" / "features").iterdir(), run / "analysis" / "study_benchmarks.json"]
    before = {path: path.stat().st_mtime_ns for path in kept}
    again = typed("study", run, "--documents", "800", cache=cache)
    assert again.returncode == 0 and {path: path.stat().st_mtime_ns for path in kept} == before
    assert "rows/s" in said and "rows/s" not in again.stdout


def test_a_run_without_its_text_or_as_its_own_control_is_refused(run, monkeypatch, capsys, tmp_path):
    run, cache = run
    for name, value in environment(cache).items():
        monkeypatch.setenv(name, value)
    assert main.run_as_command(["study", str(run), "--control", str(run), "--cache-dir", str(cache)]) == 2
    assert "give a run trained with --control random-weights" in capsys.readouterr().err
    moved = tmp_path / "moved"
    moved.mkdir()
    config = read_json(run / "config.json", "")
    config["asked"]["harvest"]["dataset"] = config["stores"][0]["dataset"]["asked"] = str(tmp_path / "gone.jsonl")
    config["stores"][0]["dataset"]["location"] = str(tmp_path / "gone.jsonl")
    write_json(moved / "config.json", config)
    (moved / "results.json").write_text((run / "results.json").read_text())
    assert main.run_as_command(["study", str(moved), "--cache-dir", str(tmp_path / "cache")]) == 2
    assert "gone.jsonl" in capsys.readouterr().err


def test_a_control_of_another_layer_is_refused(run, tmp_path):
    one = FinishedRun.open(run[0])

    def control(**changed) -> Path:
        config = json.loads(json.dumps(one.config))
        config["asked"]["harvest"] |= {"control": "random-weights", **changed}
        write_json(tmp_path / "config.json", config)
        write_json(tmp_path / "results.json", one.results)
        return tmp_path

    assert one.opened_control(control()).path == tmp_path
    with pytest.raises(InputError, match="harvested with another --layer, --seq-len than"):
        one.opened_control(control(layer=[1], seq_len=30))


def test_absorption_is_not_measured_if_windows_are_too_short(run, monkeypatch):
    def measure(settings, *_):
        if "absorption" in settings.metrics:
            raise InputError("windows of 3 tokens")
        yield "sparse_probing", {}

    monkeypatch.setattr(measures, "run_benchmarks", measure)
    monkeypatch.setattr(measures, "write_json", lambda *_: None)
    answers, notes = measures.benchmarks(FinishedRun.open(run[0]), [], 77, print, lambda text: None)
    assert answers == {"sparse_probing": {}, "absorption": {}} and "not measured: windows of 3 tokens" in notes[0]


# Intervals in every table, for any ids of the members.

POPULATIONS = {
    "--preset frontier": ("--preset", "frontier", "--activation", "relu", "topk", "--target-l0", "4", "8")
    + ("--k", "4", "8", "--batch-size", "64"),
    "unusual settings": ("--activation", "relu", "topk", "--target-l0", "8", "--k", "8", "--seed", "0", "1", "2")
    + ("--dead-rule", "anthropic", "--normalization", "mean_norm", "--warmup", "0.1", "--aux-coefficient", "0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("argv", POPULATIONS.values(), ids=POPULATIONS)
def test_every_table_has_intervals_over_seeds(tmp_path, tmp_path_factory, argv):
    cache = shared_cache(tmp_path_factory)
    small = ("--n-samples", "300", "--seq-len", "20", "--hidden-dim", "48", "--epochs", "4", "--block-steps", "8")
    run = trained(tmp_path / "run", cache, *BUNDLED, *argv, *small)
    assert main.run_as_command(["study", str(run.path), "--documents", "800", "--cache-dir", str(cache)]) == 0
    answers = read_json(run.path / "analysis" / "study.json", "")["answers"]
    assert len(answers) == 5
    for answer in answers:
        assert 3 * len(answer["table"]) == len(run.members)
        for row, cells in answer["table"].items():
            measured = {name: of for name, of in cells.items() if of["mean"] is not None}
            assert measured, (answer["question"], row)
            assert all(of["n"] == 3 and of["low"] <= of["mean"] <= of["high"] for of in measured.values()), row
