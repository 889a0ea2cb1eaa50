"""The frontier of a small trained grid (2 kinds, 2 sparsities, 2 seeds) from the preset, on the bundled model."""

import json
import shutil
import struct
import xml.etree.ElementTree as xml
from pathlib import Path

import numpy as np
import pytest
from command_line import shared_cache, typed

import main
from analysis.comparison.frontier import METRICS, compute_frontier
from analysis.plots.frontier import frontier_chart
from analysis.plots.style import style_of
from harvest.errors import InputError
from harvest.files import read_json, write_json
from sae_jax.members import Member, member_id

GRID = ("--preset", "frontier", "--activation", "relu", "topk", "--target-l0", "4", "8", "--k", "4", "8")
GRID += ("--seed", "0", "1", "--hidden-dim", "48", "--n-samples", "100", "--seq-len", "10", "--batch-size", "32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the finished process, its run directory)"""
    run = tmp_path_factory.mktemp("runs") / "grid"
    return typed(*GRID, "--run-dir", run, cache=shared_cache(tmp_path_factory), cwd=run.parent), run


@pytest.fixture
def run(trained) -> Path:
    return trained[1]


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def changed(run: Path, to: Path, change, name: str = "results.json") -> Path:
    """A copy of a run's records with `change` applied to its results."""
    to.mkdir()
    for record in ("config.json", "results.json"):
        shutil.copy(run / record, to)
    content = read_json(to / name, "")
    change(content)
    for member in content.get("members", ()):
        member["id"] = member_id(Member.from_results(member), several_sites=False)
    write_json(to / name, content)
    return to


def test_training_ends_with_a_table_and_a_figure(trained):
    done, run = trained
    assert (done.returncode, done.stderr) == (0, "")
    assert "bundled model, layer 2 resid_pre, 48 features, 810 rows" in done.stdout
    assert f"figure: {run}/figures/frontier.png and .svg" in done.stdout and "EXPERIMENT RESULTS" in done.stdout
    cells = [line.split() for line in done.stdout.splitlines()]
    for point in compute_frontier(run).points:
        l0, variance = point.metrics["l0"], point.metrics["explained_variance"]
        recovered = point.metrics["ce_recovered"]
        figures = [f"{l0.mean:.1f}", f"({l0.deviation:.1f})", f"{variance.mean:.3f}", f"({variance.deviation:.3f})"]
        figures += [f"{recovered.mean:.3f}", f"({recovered.deviation:.3f})"]
        assert [point.kind, f"{point.asked:g}", "2", *figures] in cells


def test_the_preset_and_its_scaled_values_are_recorded(trained):
    done, run = trained
    config = json.loads((run / "config.json").read_text())
    assert config["asked"]["preset"]["name"] == "frontier" and config["asked"]["harvest"]["layer"] == [2]
    assert config["stores"][0]["model"]["fell_back"] is True
    scaled = config["asked"]["preset"]["scaled_down"]
    assert scaled[0] == "--layer 8 -> 2 (the model has 4 layers, not 12)"
    assert f"--preset frontier scaled down to the bundled model: {', '.join(scaled)}" in done.stdout
    assert not any("hidden-dim" in change for change in scaled)  # the flag was given, so its value was not scaled


def test_means_and_deviations_are_those_of_the_seeds(run):
    members = results_of(run)["members"]
    points = compute_frontier(run).points
    assert [(p.kind, p.asked) for p in points] == [("relu", 4), ("relu", 8), ("topk", 4), ("topk", 8)]
    for point in points:
        same = [m for m in members if m["activation"] == point.kind and point.asked in (m["k"], m["target_l0"])]
        assert point.seeds == (0, 1) == tuple(m["seed"] for m in same) and point.panel == ""
        for name in ("l0", "explained_variance"):
            a, b = (m["metrics"][name] for m in same)
            assert point.metrics[name].mean == pytest.approx((a + b) / 2)
            assert point.metrics[name].deviation == pytest.approx(abs(a - b) / np.sqrt(2))
            assert point.metrics[name].deviation > 0 or name == "l0"


def test_the_frontier_is_saved(run):
    saved, frontier = json.loads((run / "analysis" / "frontier.json").read_text()), compute_frontier(run)
    assert saved["points"][0]["metrics"]["l0"]["mean"] == frontier.points[0].metrics["l0"].mean
    assert len(saved["points"]) == 4 and saved["failed"] == []
    expected = {"model": "bundled model", "layer": 2, "hook": "resid_pre", "hidden_dim": 48, "rows": 810, "epochs": 1}
    assert expected.items() <= saved["settings"].items()


def test_the_figure_is_a_picture(run):
    png = (run / "figures" / "frontier.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert 1000 < width < 4000 and 700 < height < 3000
    svg = xml.parse(run / "figures" / "frontier.svg").getroot()
    assert svg.tag.endswith("svg") and 400 < float(svg.get("width")) < 1500
    texts = {element.text for element in svg.iter() if element.tag.endswith("text")}
    assert {"relu", "topk", "4", "8", "L0: active features per row (log scale)", *METRICS.values()} <= texts
    assert "bundled model, layer 2 resid_pre, 48 features, 810 rows" in texts
    points = [e for e in svg.iter() if e.get("aria-roledescription") == "point"]
    assert len(points) == 4 * len(METRICS)


def test_error_bars_are_one_deviation(run):
    frontier = compute_frontier(run)
    for metric, chart in zip(METRICS, frontier_chart(frontier).to_dict()["hconcat"], strict=True):
        for point, row in zip(frontier.points, chart["data"]["values"], strict=True):
            spread = point.metrics[metric]
            assert (row["low"], row["high"]) == (spread.mean - spread.deviation, spread.mean + spread.deviation)


def test_several_runs_are_combined(run, tmp_path, capsys):
    """More seeds of the same settings widen the sample; other settings get a panel of their own."""

    def other_seeds(results):
        for member in results["members"]:
            member["seed"] += 2
            member["metrics"]["explained_variance"] += 0.01

    more = changed(run, tmp_path / "more", other_seeds)
    wider = changed(run, tmp_path / "wider", lambda r: [m.update(hidden_dim=96) for m in r["members"]])
    argv = ["frontier", *map(str, (run, more, wider)), "--to", str(tmp_path / "both")]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main.run_as_command(argv) == 0
    assert f"figure: {tmp_path}/both/figures/frontier.png" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    points = json.loads((tmp_path / "both" / "analysis" / "frontier.json").read_text())["points"]
    assert [p["panel"] for p in points] == ["48 features"] * 4 + ["96 features"] * 4
    assert [p["seeds"] for p in points] == [[0, 1, 2, 3]] * 4 + [[0, 1]] * 4
    values = [
        m["metrics"]["explained_variance"]
        for r in (run, more)
        for m in results_of(r)["members"]
        if m["activation"] == "topk" and m["k"] == 8
    ]
    spread = points[3]["metrics"]["explained_variance"]
    assert (spread["mean"], spread["deviation"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    texts = [e.text for e in xml.parse(tmp_path / "both" / "figures" / "frontier.svg").iter() if e.text]
    assert {"48 features", "96 features"} <= set(texts)


def test_other_settings_give_another_curve(run, tmp_path):
    longer = changed(run, tmp_path / "longer", lambda c: c["asked"]["train"].update(epochs=9), "config.json")
    assert [p.panel for p in compute_frontier(run, longer).points] == ["epochs 1"] * 4 + ["epochs 9"] * 4


def test_cross_entropy_where_it_was_measured(run, tmp_path):
    def forget(results):
        for member in results["members"]:
            del member["metrics"]["ce_recovered"]

    assert all("ce_recovered" in point.metrics for point in compute_frontier(run).points)
    assert "cross-entropy recovered" in json.dumps(frontier_chart(compute_frontier(run)).to_dict())
    unmeasured = compute_frontier(changed(run, tmp_path / "run", forget))
    assert not any("ce_recovered" in point.metrics for point in unmeasured.points)
    assert "cross-entropy recovered" not in json.dumps(frontier_chart(unmeasured).to_dict())


def test_a_member_that_failed_is_named_and_left_out(run, tmp_path, capsys):
    def fail(results):
        results["members"][0] |= {"metrics": None, "failed": {"step": 3, "reason": "its loss is not finite"}}

    lame = changed(run, tmp_path / "run", fail)
    lost = results_of(lame)["members"][0]
    point = compute_frontier(lame).points[0]
    assert point.seeds == (1 - lost["seed"],) and point.metrics["l0"].deviation is None
    assert main.run_as_command(["frontier", str(lame)]) == 0
    assert f"{lost['id']} has no results" in capsys.readouterr().out


def test_a_point_with_an_l0_of_0_is_reported_and_the_others_are_drawn(run, tmp_path, capsys):
    """An L0 of 0 has no position on a logarithmic axis."""

    def silence(results):
        for member in results["members"]:
            if member["activation"] == "relu" and member["target_l0"] == 4:
                member["metrics"] |= {"l0": 0.0, "dead_fraction": 1.0}

    silent = changed(run, tmp_path / "run", silence)
    assert main.run_as_command(["frontier", str(silent)]) == 0
    table, drawn = capsys.readouterr().out, frontier_chart(compute_frontier(silent)).to_dict()
    assert "means over seeds, in parentheses their standard deviations\n" in table
    assert ["relu", "4", "2", "0.0", "(0.0)"] in [line.split()[:5] for line in table.splitlines()]
    assert "not drawn: 1 at L0 0, where no feature fires" in drawn["title"]["subtitle"]
    assert [len(chart["data"]["values"]) for chart in drawn["hconcat"]] == [3, 3]


def test_runs_without_a_frontier_are_refused(run, tmp_path, capsys):
    def one_level(results):
        results["members"] = [m for m in results["members"] if 4 in (m["k"], m["target_l0"])]

    flat = changed(run, tmp_path / "flat", one_level)
    (tmp_path / "unfinished").mkdir()
    shutil.copy(run / "config.json", tmp_path / "unfinished")
    refusals = {
        (tmp_path / "nowhere",): "no such run directory",
        (tmp_path / "unfinished",): "is not finished",
        (run, run): "twice",
        (): "RUN",
    }
    for runs, reason in refusals.items():
        assert main.run_as_command(["frontier", *map(str, runs)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and reason in error
    assert main.run_as_command(["frontier", str(flat)]) == 0
    said = capsys.readouterr().out
    assert "no figure: it needs one kind at two or more sparsities" in said and "relu" in said
    assert not (flat / "figures").exists() and not (flat / "analysis").exists()
    assert main.run_as_command(["frontier", str(flat), "--to", str(tmp_path / "asked")]) == 2
    error = capsys.readouterr().err
    assert f"--to {tmp_path / 'asked'}: there is no figure to write, because no kind has results at two" in error
    assert not (tmp_path / "asked").exists()
    with pytest.raises(InputError, match=str(tmp_path / "nowhere")):
        compute_frontier(tmp_path / "nowhere")


def test_baselines_have_curves_beside_those_of_their_kind(run, tmp_path):
    def freeze(results):
        results["members"] += [
            member | {"baseline": "frozen_decoder"} for member in results["members"] if member["activation"] == "relu"
        ]

    frontier = compute_frontier(changed(run, tmp_path / "twins", freeze))
    kinds = [point.kind for point in frontier.points]
    assert kinds == ["relu"] * 2 + ["relu, frozen_decoder"] * 2 + ["topk"] * 2 and frontier.panels == [""]
    drawn = json.dumps(frontier_chart(frontier).to_dict())
    colours = {style_of(kind)[0] for kind in kinds}
    assert len(colours) == 3 and all(colour in drawn for colour in colours)
