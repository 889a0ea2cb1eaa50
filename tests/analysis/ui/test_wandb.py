"""W&B logs of real trainings, read back from the files that W&B writes offline."""

import json
import signal
import time
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np
import pytest
import wandb
from command_line import ROOT, THREE_KINDS, shared_cache, start, typed
from PIL import Image
from wandb_files import records

from analysis.cli import train as train_command
from analysis.run_options import RunOptions
from analysis.training import wandb_log
from analysis.ui.terminal.live import Terminal
from analysis.ui.wandb_log import WandbLog
from harvest.errors import InputError
from harvest.request import HarvestRequest
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL, named_files
from sae_jax.config import TrainConfig
from sae_jax.run_directory import RunDirectory
from sae_jax.training.progress import Progress

RUN = (*THREE_KINDS, "--epochs", "10", "--seed", "3", "--snapshots", "4", "--ce-windows", "0")
LOGGED = ("--use-wandb", "--wandb-project", "toads", "--log-freq", "20")
CURVES = ("loss", "explained_variance", "l0", "dead_fraction")
LAST = 10 * 12


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return shared_cache(tmp_path_factory)


@pytest.fixture(autouse=True, scope="module")
def no_login():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", "/nowhere")
        yield


@pytest.fixture(scope="module")
def plain(cache, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    done = typed(*RUN, "--run-dir", run, cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    return run


@pytest.fixture(scope="module")
def logged(cache, tmp_path_factory) -> tuple[Path, str]:
    """(the run directory, the printed text)."""
    run = tmp_path_factory.mktemp("runs") / "run"
    done = typed(*RUN, *LOGGED, "--run-dir", run, cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    return run, done.stdout


def read_back(run: Path) -> dict[str, dict]:
    """{id: history, config, summary and names} of each W&B run in a run directory."""
    found: dict[str, dict] = {}
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        of = defaultdict(list)
        for record in records(file):
            of[record.WhichOneof("record_type")].append(record)
        if "run" not in of:  # killed before W&B wrote anything
            continue
        header = of["run"][0].run
        own = found.setdefault(header.run_id, {"history": [], "summary": {}, "config": {}, "defined": [], "parts": 0})
        own |= {"project": header.project, "group": header.run_group, "name": header.display_name}
        own["parts"] += 1
        own["files"] = file.parent / "files"
        own["config"] |= {item.key: json.loads(item.value_json) for item in header.config.update}
        own["history"] += [named(record.history.item) for record in of["history"]]
        for record in of["summary"]:
            own["summary"] |= named(record.summary.update)
        own["defined"] += [(r.metric.glob_name or r.metric.name, r.metric.step_metric) for r in of["metric"]]
    return found


def named(items) -> dict:
    """{name: value}. Values that W&B writes in parts, such as histograms, are merged."""
    found: dict = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inside = found
        for key in outer:
            inside = inside.setdefault(key, {})
        inside[last] = json.loads(item.value_json)
    return found


def curve(history: list[dict], name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in history if name in row}


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def only_run(run: Path) -> dict:
    (found,) = read_back(run).values()
    return found


def members_of(run: Path) -> list[dict]:
    return json.loads((run / "results.json").read_text())["members"]


def learned(run: Path) -> dict:
    files = [run / "metrics.jsonl", *run.glob("members/*/*"), *run.glob("snapshots/*/*")]
    assert len(files) > 3 * 3
    contents: dict = {str(path.relative_to(run)): path.read_bytes() for path in files}
    return contents | {"members": members_of(run)}


def test_the_curves_in_wandb_equal_metrics_jsonl(logged):
    run, said = logged
    found = only_run(run)
    assert said.count("W&B: you are not logged in") == 1 and f"wandb sync {run}/wandb/offline-run-*" in said
    lines = metrics_of(run)
    assert ("step" in dict(found["defined"])) and ("*", "step") in found["defined"]
    for member in members_of(run):
        for name in CURVES:
            expected = {line["step"]: line[name] for line in lines if line["member"] == member["id"]}
            points = curve(found["history"], f"{name}/{member['id']}")
            assert list(points) == [4, 20, 40, 60, 80, 100, LAST]
            assert points == {step: expected[step] for step in points}


def test_the_config_in_wandb_has_all_settings(logged):
    run, _ = logged
    found = only_run(run)
    asked = json.loads((run / "config.json").read_text())["asked"]
    assert found["project"] == "toads" and found["config"]["seed"] == [3]
    wanted = {key: value for part in ("harvest", "train") for key, value in asked[part].items() if key != "members"}
    assert {key: found["config"][key] for key in wanted} == wanted
    assert found["config"]["members"] == [member["id"] for member in members_of(run)]


def test_histograms_figures_and_the_table_of_results(logged):
    run, _ = logged
    found = only_run(run)
    last = {key: value for row in found["history"] for key, value in row.items()}
    table = json.loads((found["files"] / last["results"]["path"]).read_text())
    by_id = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    assert table["columns"][0] == "id" and len(by_id) == 3
    pictures = ["figures/densities"]
    for member in members_of(run):
        name = member["id"]
        density_F = np.load(run / "members" / name / "stats.npz")["density"]
        histogram = last[f"density/{name}"]
        expected, edges = np.histogram(np.log10(density_F[density_F > 0]), np.arange(-6, 0.01, 0.25))
        assert histogram["_type"] == "histogram" and histogram["values"] == expected.tolist()
        np.testing.assert_allclose(histogram["bins"], edges)
        row = by_id[name]
        assert {key: row[key] for key in member["metrics"]} == member["metrics"]
        assert row["mean_activation_rate"] == pytest.approx(density_F.mean())
        assert row["high_freq_neurons"] == (density_F > 0.1).sum() > 0
        assert found["summary"][f"final/explained_variance/{name}"] == member["metrics"]["explained_variance"]
        pictures += [f"figures/activation_heatmap/{name}", f"figures/feature_map/{name}"]
    for name in pictures:
        with Image.open(found["files"] / last[name]["path"]) as picture:
            assert picture.format == "PNG" and picture.size == (last[name]["width"], last[name]["height"])
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20  # the picture is not empty


def test_wandb_does_not_change_the_training(plain, logged):
    assert learned(logged[0]) == learned(plain)


def test_an_error_of_wandb_is_reported_once_and_changes_nothing_else(plain, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    done = typed(*RUN, *LOGGED, "--run-dir", tmp_path / "run", cache=cache)
    assert (done.returncode, done.stdout.count("W&B stopped, training continues without it")) == (0, 1)
    assert "Traceback" not in done.stdout + done.stderr
    assert learned(tmp_path / "run") == learned(plain)


@pytest.mark.slow
def test_a_lost_network_leaves_the_run_offline(plain, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    run = tmp_path / "run"
    done = typed(*RUN, *LOGGED, "--run-dir", run, cache=cache)
    assert (done.returncode, done.stdout.count("W&B cannot be reached, so the run is kept offline")) == (0, 1)
    assert learned(run) == learned(plain)
    points = curve(only_run(run)["history"], f"loss/{members_of(run)[0]['id']}")
    assert list(points) == [4, 20, 40, 60, 80, 100, LAST]


@pytest.mark.slow
def test_a_resumed_run_continues_the_same_wandb_run_without_repeated_steps(plain, cache, tmp_path):
    run = tmp_path / "run"
    longer = (
        *RUN,
        "--epochs",
        "200",
        "--use-wandb",
        "--log-freq",
        "1",
        "--checkpoint-seconds",
        "0.5",
        "--run-dir",
        run,
    )
    process = start(*longer, cache=cache)
    record = run / "wandb.json"
    while process.poll() is None and not (record.exists() and json.loads(record.read_text())["step"] >= 40):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert not (run / "results.json").exists()
    before = json.loads(record.read_text())
    done = typed(*longer, "--resume", cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    ((run_id, found),) = read_back(run).items()
    assert before["run"] == json.loads(record.read_text())["run"] == run_id
    assert found["parts"] == 2
    name = members_of(run)[0]["id"]
    steps = [row["step"] for row in found["history"] if f"loss/{name}" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 200 * 12 and steps[0] == 4
    expected = {line["step"]: line["loss"] for line in metrics_of(run) if line["member"] == name}
    points = curve(found["history"], f"loss/{name}")
    assert points == {step: expected[step] for step in points} and set(expected) - set(points) <= {before["step"] + 4}


def replayed(run: Path) -> list[str]:
    """Log a finished run's metrics and results to W&B again. Returns the printed messages."""
    said: list[str] = []
    lines, results = metrics_of(run), json.loads((run / "results.json").read_text())
    with WandbLog(run, {"epochs": 10}, said.append) as log:
        for step, of_step in groupby(lines, key=lambda line: line["step"]):
            figures = {line.pop("member"): {k: v for k, v in line.items() if k != "step"} for line in of_step}
            log.training_progress(Progress(step, LAST, 1.0, 1.0, 0.0, figures, {}))
        log.results(results)
    wandb.teardown()  # as at the end of a process, because W&B may write the last run's file only then
    return said


def without_wandb(run: Path, to: Path) -> Path:
    return copytree(run, to, ignore=ignore_patterns("wandb*", ".lock"))


def test_a_requested_mode_of_wandb_is_kept(logged, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = without_wandb(logged[0], tmp_path / "run")
    assert replayed(run) == []
    assert not list(run.glob("wandb/*run-*"))


def test_force_begins_another_run_and_forgets_the_first(logged, tmp_path):
    from sae_jax.run_directory import RunDirectory

    run = copytree(logged[0], tmp_path / "run", symlinks=True)
    RunDirectory(run, json.loads((run / "config.json").read_text())["asked"]).clear()
    assert [path.name for path in run.iterdir()] in ([], [".lock"])


@pytest.mark.parametrize("name", [("--wandb-project", "x"), ("--log-freq", "5")])
def test_its_flags_are_refused_without_it(name):
    with pytest.raises(InputError, match=f"{name[0]} has no effect without --use-wandb"):
        train_command.parse([*THREE_KINDS, *name])
    train_command.parse([*THREE_KINDS, "--use-wandb", *name])


def test_log_freq_is_a_number_of_steps():
    with pytest.raises(InputError, match="--log-freq 0: must be a whole number, 1 or more"):
        train_command.parse([*THREE_KINDS, "--use-wandb", "--log-freq", "0"])


STUCK = """
import sys, time, wandb
from analysis.ui import wandb_log
wandb_log.DRAW_SECONDS = 1
wandb.init = lambda **_: time.sleep(1000)
import runpy
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_a_call_of_wandb_that_hangs_does_not_block_the_exit(cache, tmp_path):
    script = ROOT / "main.py"
    done = typed(script, *RUN, "--use-wandb", "--run-dir", tmp_path / "run", cache=cache, script=STUCK)
    assert (
        done.returncode == 0 and "W&B does not respond" in done.stdout and (tmp_path / "run" / "results.json").exists()
    )


def test_a_local_model_is_named_in_its_config(tmp_path):
    request = HarvestRequest(model_name=str(BUNDLED_MODEL), dataset=str(BUNDLED_CORPUS))
    asked = {"harvest": request.to_json(), "train": TrainConfig().to_json(), "files": named_files(request)}
    log = wandb_log(request, TrainConfig(), RunOptions(), RunDirectory(tmp_path, asked), Terminal())
    assert log._config["model_name"] == str(BUNDLED_MODEL) and log._config["files"] == named_files(request)
