"""The command `show` on a run that is being trained by another process, interrupted, or finished."""

import json
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from command_line import THREE_KINDS, shared_cache, start, trained, typed
from filelock import FileLock
from finished_runs import finished_run
from rows import make_store

from analysis.cli.show import follow
from analysis.cli.train import parse
from analysis.runs.live import LiveRun
from analysis.ui.terminal.live import Terminal
from analysis.ui.terminal.scatter import scatter
from harvest.files import read_json
from sae_jax.best_member import best_member, best_members
from sae_jax.config import TrainConfig
from sae_jax.run_directory import RunDirectory


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


def show(path, *argv):
    """`python main.py show`, which has no flag --cache-dir."""
    script = "import sys, main; sys.exit(main.run_as_command(['show', *sys.argv[1:-2]]))"
    return typed(path, *argv, cache=path, script=script)


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, half a minute at most."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def live_run(cache, tmp_path_factory):
    """A training that takes longer than the tests, and is stopped after them."""
    run = tmp_path_factory.mktemp("runs") / "long"
    process = start(*THREE_KINDS, "--epochs", "100000", "--run-dir", run, cache=cache)
    while not ((lines := run / "metrics.jsonl").exists() and lines.stat().st_size):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    yield run, process
    process.kill()
    process.wait()


def test_a_run_that_another_process_trains(live_run):
    run, _ = live_run
    shown = show(run)
    assert shown.returncode == 0 and "\x1b" not in shown.stdout
    total = json.loads((run / "config.json").read_text())["total_steps"]
    steps = {json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    head = re.search(r"^train  step ([\d,]+)/([\d,]+)  ", shown.stdout, re.M)
    assert int(head[1].replace(",", "")) in steps and int(head[2].replace(",", "")) == total
    for kind in ("relu", "jump_relu", "topk"):
        assert re.search(rf"^  {kind}-f48\S+ +loss [\d.]+ ", shown.stdout, re.M)
    assert re.search(r"is being trained; last reported \d+ s ago$", shown.stdout, re.M)
    pareto = show(run, "--pareto")
    assert pareto.returncode == 2 and "is not finished" in pareto.stderr


def test_watching_ends_with_a_message_and_does_not_stop_the_training(live_run):
    run, process = live_run
    script = "import sys, main; sys.exit(main.run_as_command(['show', *sys.argv[1:-2]]))"
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # background jobs ignore SIGINT otherwise
    watching = start(run, "--watch", cache=run, script=script, preexec_fn=heeds)
    assert watching.stdout.readline().startswith("train  step ")
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 130 and err == ""
    assert f"stopped watching: {run} is being trained" in out
    assert process.poll() is None


def test_the_message_of_a_stopped_run_says_how_to_continue(live_run):
    run, process = live_run
    os.kill(process.pid, signal.SIGINT)
    process.wait(timeout=120)
    shown = show(run)
    assert shown.returncode == 0 and "was interrupted" in shown.stdout
    command = shlex.split(shown.stdout[shown.stdout.index("main.py") :])[1:]
    request, config, options, _ = parse(command)
    asked = read_json(run / "config.json", "")["asked"]
    again = json.loads(json.dumps([request.to_json(), config.to_json()]))
    assert again == [asked["harvest"], asked["train"]]
    assert (options.run_dir, options.resume) == (run, True)


def test_each_block_is_drawn_once(live_run, tmp_path, monkeypatch):
    """The run is a copy whose lock this process holds, as if it trained the run."""
    run, _ = live_run
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:3]))
    monkeypatch.setattr("analysis.cli.show.POLL_SECONDS", 0.02)
    terminal = Recorder()
    drawn = terminal.drawn
    with FileLock(tmp_path / ".lock"):
        watching = threading.Thread(target=follow, args=(LiveRun.open(tmp_path), terminal, True))
        watching.start()
        until(lambda: len(drawn) == 1)
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.writelines(lines[3:6])
        until(lambda: len(drawn) == 2)
        (tmp_path / "results.json").write_text("{}")
        watching.join(timeout=30)
    assert drawn == [json.loads(lines[0])["step"], json.loads(lines[3])["step"]]


class Recorder(Terminal):
    """A terminal that only records the steps that it should draw, and what it should say."""

    def __init__(self):
        super().__init__(quiet=True)
        self.drawn, self.said = [], []

    def training_progress(self, progress):
        self.drawn.append(progress.step)

    def say(self, text):
        self.said.append(text)


def interrupted_run(path: Path, steps: list[int]) -> RunDirectory:
    """A run that is not finished and has metrics of these steps."""
    run = finished_run(path / "run", TrainConfig(), [make_store(path / "store", windows=20)])
    (run.path / "results.json").unlink()
    (member,) = run.members
    numbers = dict.fromkeys(("loss", "mse", "explained_variance", "l0", "dead_fraction"), 0.5)
    directory = RunDirectory(run.path, run.config["asked"])
    directory.append_metrics([{"step": step, "member": member, **numbers} for step in steps])
    return directory


def test_watching_follows_a_run_that_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.cli.show.POLL_SECONDS", 0.02)
    run, terminal = interrupted_run(tmp_path, [10, 20, 100]), Recorder()
    metrics = run.path / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:2]))
    watching = threading.Thread(target=follow, args=(LiveRun.open(run.path), terminal, True))
    watching.start()
    until(lambda: any("waiting for a process to continue it" in text for text in terminal.said))
    with FileLock(run.path / ".lock"):
        metrics.write_text(lines[0])  # it resumes at an earlier checkpoint
        until(lambda: terminal.drawn == [20, 10])
        metrics.write_text("".join(lines))
        until(lambda: terminal.said[-1].startswith("training is done"))
        assert watching.is_alive(), "the held-out metrics are still missing"
        (run.path / "results.json").write_text("{}")
        watching.join(timeout=30)
    assert not watching.is_alive() and terminal.drawn == [20, 10, 100]


def test_watching_ends_if_no_process_continues(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.cli.show.PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr("analysis.cli.show.POLL_SECONDS", 0.02)
    run, terminal = interrupted_run(tmp_path, [10]), Recorder()
    follow(LiveRun.open(run.path), terminal, True)
    assert terminal.drawn == [10] and "run the training command again" in terminal.said[-1]


def test_a_finished_run_is_shown_as_it_was_at_its_end(cache, tmp_path):
    run = tmp_path / "run"
    trained(run, cache, *THREE_KINDS, "--epochs", "2", "--ce-windows", "0")
    shown = show(run, "--pareto")
    assert shown.returncode == 0, shown.stderr
    results = json.loads((run / "results.json").read_text())["members"]
    for member in results:
        row = next(line for line in shown.stdout.splitlines() if line.startswith(f"║ {member['id']} "))
        assert f"{member['metrics']['explained_variance']:.3f}" in row
    assert "means over the seeds" not in shown.stdout, "one seed of each kind"
    assert "a relu  b jump_relu  c topk" in shown.stdout and "no analyses yet" in shown.stdout
    assert f"not run yet: python main.py study {run}\n" in shown.stdout
    (run / "analysis").mkdir()
    (run / "analysis" / "study.json").write_text("{}")
    shown = show(run)
    assert "analyses: study\n" in shown.stdout and "main.py study" not in shown.stdout
    assert f"not run yet: python main.py saebench {run}\n" in shown.stdout


def test_nothing_to_show(tmp_path):
    shown = show(tmp_path)
    assert shown.returncode == 2 and "has no config.json, so it is no run" in shown.stderr
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    resumed = typed("--resume", tmp_path / "one", cache=tmp_path / "cache")
    assert resumed.returncode == 2 and f"`show {tmp_path / 'one'}` prints the command" in resumed.stderr
    assert f"it is a folder of runs: give one, such as {tmp_path / 'one'}" in show(tmp_path).stderr
    shown = show(tmp_path / "none")
    assert shown.returncode == 2 and "no such run directory" in shown.stderr


def test_the_best_member_explains_most_near_the_target_l0():
    metrics = {
        "far": {"explained_variance": 0.9, "l0": 40.0},
        "near": {"explained_variance": 0.8, "l0": 33.0},
        "worse": {"explained_variance": 0.7, "l0": 32.0},
        "failed": {"explained_variance": float("nan"), "l0": float("nan")},
    }
    asked = dict.fromkeys(metrics, 32.0)
    assert best_member(metrics, asked) == "near" and best_members(metrics, asked) == {"near"}
    assert best_members(metrics, asked | {"near": 33.0, "far": 33.0}) == {"near", "worse"}, "one for each target"
    assert best_member(metrics, asked | {"far": None}) == "far"
    assert best_member({"near": metrics["near"]}, asked) is None
    assert best_member({name: metrics["failed"] for name in "ab"}, {}) is None


def test_close_points_stay_close_in_a_plot():
    lines = scatter([("relu", 31.9, 0.5), ("topk", 32.0, 0.9)], "L0", "EV", 80)
    rows = [line.partition("|")[2] for line in lines[1:17]]
    assert 0 < rows[0].index("b") - rows[-1].index("a") < 8  # L0 differs by 0.3%, a small part of the plot
    assert "a" in scatter([("relu", 0.0, 0.0)], "L0", "EV", 80)[9]  # a single point is in the middle


@pytest.mark.parametrize("columns", [40, 80, 100])
def test_a_scatter_puts_points_where_they_belong(columns):
    lines = scatter([("relu", 16, 0.5), ("relu", 64, 0.9), ("topk", 40, 0.7), ("topk", 64, 0.9)], "L0", "EV", columns)
    assert max(map(len, lines)) <= columns and lines[-1] == "a relu  b topk"
    rows = [line.partition("|")[2] for line in lines[1:17]]
    assert rows[0].rstrip().endswith("*") and len(rows[0]) == max(map(len, rows))  # two kinds overlap at the top right
    assert rows[-1][0] == "a" and "0.500 |" in lines[16] and "0.900 |" in lines[1]
    (middle,) = (row for row in rows if "b" in row)
    assert abs(middle.index("b") - (len(rows[0]) - 1) / 2) <= 1
