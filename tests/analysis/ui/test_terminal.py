"""The output of a run on a pseudo-terminal, in a log file, and for unusual values.

`fake_run` makes the calls of a run. On a pseudo-terminal it runs in a separate process, and a screen emulator reads its
output.
"""

from __future__ import annotations

import fcntl
import io
import math
import os
import re
import struct
import subprocess
import sys
import termios
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from command_line import ROOT

from analysis.stats import Estimate
from analysis.ui.terminal.fitted import Spare
from analysis.ui.terminal.live import LINE_SECONDS, Terminal
from analysis.ui.terminal.pulse import SILENT_SECONDS
from analysis.ui.terminal.screen import LOG_COLUMNS, Screen
from analysis.ui.terminal.sparkline import CURVE_POINTS, LossCurve
from analysis.ui.terminal.tables import StudyTable, fitted, runs_table
from harvest.request import Site
from sae_jax.config import TrainConfig
from sae_jax.lookup import told_apart
from sae_jax.members import members_of

ACTIVATIONS = ("relu", "jump_relu", "topk")
TICKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Progress:
    step: int
    total_steps: int
    rows_per_second: float
    seconds_left: float
    data_wait: float
    members: dict[str, dict[str, float]]
    l0_asked: dict[str, float | None]


class Clock:
    """A clock whose time is set by `fake_run`."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def member_ids(n: int) -> list[str]:
    if n <= 3:
        return [f"{activation}-256" for activation in ACTIVATIONS[:n]]
    return [f"{ACTIVATIONS[i % 3]}-hidden_dim_2048-resid_pre-lr_0.0003-l0_32-seed{i}" for i in range(n)]


def progress(step: int, ids: list[str], loss: float | None = None, blocks: int = 50) -> Progress:
    metrics = {"explained_variance": 0.9 - 0.8 / step, "l0": 32 + 300 / step, "dead_fraction": 0.012}
    members = {
        member_id: {"mse": 0.5 * (i + 1) + 40 / step if loss is None else loss, **metrics}
        for i, member_id in enumerate(ids)
    }
    return Progress(
        step * 500, blocks * 500, 152_000.0, 72.0 * (1 - step / blocks), 0.13, members, dict.fromkeys(ids, 32.0)
    )


def results(ids: list[str], failed: str | None = None, model: str = "bundled") -> dict:
    metrics = {
        "explained_variance": 0.8123, "explained_variance_train": 0.9,
        "mse": 0.01234, "l0": 32.4, "sparsity": 0.8734, "l1": 3.0, "cosine": 0.9,
        "dead_fraction": 0.012,
    }  # fmt: skip
    stopped = {"step": 3000, "reason": "the loss is not finite; try a lower --lr"}
    members = [
        {
            **asdict(members_of(TrainConfig(activation=ACTIVATIONS[i % 3]), (Site(0, "resid_pre"),))[0]),
            "id": member_id,
            "failed": stopped if member_id == failed else None,
            "metrics": metrics,
        }
        for i, member_id in enumerate(ids)
    ]
    timing = {"harvest_seconds": 21.2, "training_seconds": 72.0, "evaluation_seconds": 3.0, "rows_per_second": 152e3}
    return {"members": members, "timing": timing, "model": {"name": model, "fell_back": True}, "backend": "cpu"}


def fake_run(n: int, stop: str = "", stream=None, pace: float = 1.0, run_dir: str = "runs/first") -> None:
    """A run with n members and `pace` seconds per event. It stops early for `stop`: at a 'frame', or by an 'error'."""
    ids, clock = member_ids(n), Clock()
    with Terminal(stream=stream, clock=clock) as terminal:
        terminal.say("no model hub in reach: using the bundled model")
        for done in range(0, 200_001, 20_000):
            terminal.progress("harvest", done, 200_000)
            clock.now += pace
        for step in range(1, 51):
            terminal.training_progress(progress(step, ids))
            clock.now += pace
            if step == 30:
                terminal.say("checkpoint of step 15,000 written")
                print("a library talks", file=sys.stderr)
            if step == 40 and stop == "frame":
                sys.stdout.flush()
                os._exit(0)
            if step == 40 and stop == "error":
                raise KeyboardInterrupt
        terminal.results(results(ids), run_dir)


def on_a_terminal(call: str, columns: int, rows: int = 60, **environment: str) -> tuple[list[str], bytes]:
    """(lines, raw bytes) of a screen of this size after `call` ran there. Lines that were scrolled off are included."""
    pyte = pytest.importorskip("pyte")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    child = subprocess.Popen(
        [sys.executable, "-c", f"import test_terminal as t; t.{call}"],
        stdin=theirs, stdout=theirs, stderr=theirs,
        env={**inherited, "TERM": "xterm-256color", "PYTHONPATH": path, "PYTHONUTF8": "1", **environment},
    )  # fmt: skip
    os.close(theirs)
    sent = bytearray()
    try:
        while chunk := os.read(ours, 65536):
            sent += chunk
    except OSError:  # Linux raises this if the other side is closed
        pass
    os.close(ours)
    child.wait()
    # The output is read on a wider screen, so that a line that would wrap is found to be too long.
    screen = pyte.HistoryScreen(columns + 60, rows, history=2000)
    pyte.ByteStream(screen).feed(bytes(sent))
    history = ["".join(line[x].data for x in range(screen.columns)) for line in screen.history.top]
    return [line.rstrip() for line in [*history, *screen.display]], bytes(sent)


def log_of(n: int, **how) -> list[str]:
    stream = io.StringIO()
    fake_run(n, stream=stream, **how)
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("columns", [80, 160])
def test_a_frame_shows_all_parts_in_their_place(columns):
    lines, _ = on_a_terminal("fake_run(3, 'frame')", columns)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= columns
    assert (
        text.count("loss so far") == 1 and text.count("step ") == 1 + 1
    )  # one table, which is redrawn, and the line that stayed
    assert re.search(r"^train [━╸╺]+ +80%  14 s left$", text, re.M)
    assert "step 20,000/25,000   152,000 rows/s   waiting for data 13%" in text
    for kept in (
        "no model hub in reach: using the bundled model",
        "checkpoint of step 15,000 written",
        "a library talks",
    ):
        assert lines.count(kept) == 1 and lines.index(kept) < text[: text.index("loss so far")].count("\n")
    for member_id in member_ids(3):
        (row,) = (line for line in lines if line.startswith(member_id))
        assert re.search(r" 0\.880 +39\.5 +1\.2%  [▁▂▃▄▅▆▇█]+$", row)
    curves = {len(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(member_ids(3)[0])}
    assert curves == ({27} if columns == 80 else {40})  # as many characters as fit, or one per block


@pytest.mark.parametrize("columns", [80, 160])
def test_the_box_of_results(columns):
    lines, _ = on_a_terminal("fake_run(3)", columns)
    box = lines[next(i for i, line in enumerate(lines) if line.startswith("╔")) :]
    box = box[: next(i for i, line in enumerate(box) if line.startswith("╚")) + 1]
    assert {len(line) for line in box} == {len(box[0])} and len(box[0]) <= columns
    assert box[1].strip("║ ") == "EXPERIMENT RESULTS" and set(box[0][1:-1]) == {"═"}
    for member_id in member_ids(3):
        (row,) = (line for line in box if line.startswith(f"║ {member_id} "))
        mark = ["★"] * (member_id == member_ids(3)[0])  # all are equal, so the first
        assert row.split() == [
            "║",
            member_id,
            *mark,
            "0.01234",
            "87.34%",
            "0.812",
            "0.900",
            "32.4",
            "(32)",
            "1.2%",
            "║",
        ]
    text = "\n".join(box)
    facts = (
        "bundled (fallback: the hub cannot be reached)",
        "cpu",
        "runs/first",
        "training 1 min 12 s",
        "152,000 rows/s",
    )
    assert all(fact in text for fact in facts)


@pytest.mark.parametrize("columns", [80, 160])
def test_twenty_four_members(columns):
    lines, _ = on_a_terminal("fake_run(24, 'frame', pace=0.04)", columns, rows=24)
    screen = lines[-24:]
    assert max(map(len, lines)) <= columns and sum("loss so far" in line for line in lines) == 1
    assert any(line.startswith("train ━") for line in screen)
    rows = [line for line in screen if re.search(r"seed\d+ ", line)]
    assert len(rows) == 18 and all(row[-1] in TICKS for row in rows)
    assert all(("hidden_dim_2048" in row) == (columns == 160) for row in rows)  # what all ids share is dropped
    assert "and 6 more: loss 10.5 to 13  EV 0.880 to 0.880  L0 39.5 to 39.5" in screen

    lines, _ = on_a_terminal("fake_run(24, pace=0.04)", columns, rows=24)
    assert max(map(len, lines)) <= columns
    box = [line for line in lines if line.startswith("║")]
    for seed in range(24):
        assert sum(bool(re.search(rf"seed{seed} .* 0\.812 ", line)) for line in box) == 1
        assert sum(bool(re.search(rf"^\S+seed{seed} ", line)) for line in lines) == 1  # the last frame has all


def test_an_interruption_keeps_the_last_frame_and_gives_the_cursor_back():
    lines, sent = on_a_terminal("fake_run(1, 'error')", 80)
    assert "step 20,000/25,000" in "\n".join(lines)
    assert sent.rindex(b"\x1b[?25h") > sent.rindex(b"\x1b[?25l")


def test_no_color_is_respected():
    colour = re.compile(rb"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d)(?:;\d+)*m")
    assert colour.search(on_a_terminal("fake_run(1)", 80)[1])
    assert not colour.search(on_a_terminal("fake_run(1)", 80, NO_COLOR="1")[1])
    lines, sent = on_a_terminal("fake_run(1)", 200, TERM="dumb")
    assert b"\x1b" not in sent and any(line.startswith("train  step 25,000/25,000  100%") for line in lines)


@pytest.mark.parametrize("n", [1, 3, 24])
def test_a_log_has_plain_lines_at_intervals(n, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    lines = log_of(n)
    assert max(map(len, lines)) <= LOG_COLUMNS
    training = [line for line in lines if line.startswith(("train", "  "))]
    assert len(training) <= 50 / LINE_SECONDS + 2 * (n + 1)
    assert training[0].startswith("train  step 500/25,000  2%  152,000 rows/s  waiting for data 13%  1 min 11 s left")
    last = [line for line in training if "step 25,000/25,000  100%" in line]
    assert len(last) == 1 and "done" in last[0]
    for member_id in member_ids(n):
        (row,) = (line for line in training[training.index(last[0]) :] if f" {member_id} " in line)
        assert re.search(r"loss 1?\d\.\d+  ev 0\.884  l0 38\.0  dead 1\.2%$", row)
    assert "harvest  200,000/200,000 tokens  100%  20,000 tokens/s  done" in lines
    assert "EXPERIMENT RESULTS" in [line.strip("║ ") for line in lines]


def test_a_log_of_an_interrupted_run_ends_with_its_last_block():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        fake_run(1, "error", stream=stream, pace=0.001)
    training = [line for line in stream.getvalue().splitlines() if line.startswith("train")]
    assert [re.search(r"step [\d,]+", line)[0] for line in training] == ["step 500", "step 20,000"]


def test_quiet_prints_the_path_and_names_what_failed(capsys):
    with Terminal(quiet=True) as terminal:
        terminal.say("hello")
        terminal.progress("harvest", 1, 2)
        terminal.training_progress(progress(1, member_ids(3)))
        terminal.results(results(member_ids(3), failed="topk-256"), "runs/a [bold]path[/bold]")
    out, err = capsys.readouterr()
    assert out == "runs/a [bold]path[/bold]\n"
    assert err == "topk-256: stopped at step 3,000: the loss is not finite; try a lower --lr\n"


def test_the_best_member_is_always_on_screen():
    lines, _ = on_a_terminal("best_of_many()", 80, rows=24)
    screen = lines[-24:]
    assert sum("★" in line for line in screen) == 1 and any(line.startswith("topk-seed44 ★") for line in screen)
    assert any(line.startswith("relu-seed0 ") for line in screen) and any("and 27 more: " in line for line in screen)


def best_of_many() -> None:
    of = progress(25, member_ids(45))
    of.members[member_ids(45)[-1]].update(explained_variance=0.95, l0=32.0)
    Terminal().training_progress(of)
    sys.stdout.flush()
    os._exit(0)


def results_lines(ids: list[str], columns: int, best: int = 0) -> list[str]:
    found = results(ids)
    found["members"][best]["metrics"] = {**found["members"][best]["metrics"], "explained_variance": 0.99}
    stream = io.StringIO()
    terminal = Terminal(stream=stream)
    terminal.show(terminal._console.results_table(found["members"], columns))
    return stream.getvalue().splitlines()


def test_columns_are_left_out_before_ids_are_shortened():
    ids = [
        f"{kind}-f4608-{asked}-lr1e-3-s{seed}" for asked in ("l16", "l64") for seed in (0, 1) for kind in ACTIVATIONS
    ]
    head, *rows, note = results_lines(ids, 76, best=4)
    assert [row.split()[0] for row in rows] == ids and rows[4].startswith(f"{ids[4]} ★ ")
    assert "train" not in head and "L0 (target)" in head
    assert note.strip() == "left out: train, sparsity; a wider terminal or results.json has them"
    assert not results_lines(ids, 160)[-1].startswith("left out")

    _, *rows, _ = results_lines([name.replace("f4608", "f4608" * 9) for name in ids], 76, best=4)
    cells = [row.split("  ")[0] for row in rows]
    assert cells[0] == "relu-l16-s0" and cells[4] == "jump_relu-l16-s1 ★" and len(set(cells)) == len(ids)


def test_members_that_differ_never_look_the_same():
    ids = [f"jump_relu_topk{'x' * 20}{number}{'x' * 20}" for number in range(3)]  # the ends and the parts are equal
    cells = {row.split("  ")[0] for row in results_lines(ids, 40) if row.startswith("jump")}
    assert len(cells) == 3


@pytest.mark.parametrize("columns", [80, 30])
def test_the_name_of_a_run_is_on_one_line(columns):
    name = "a-run-with-a-long-name-" + "x" * 30
    run = {"name": name, "state": "finished", "date": "2026-11-29T06:51", "members": 9, "explained_variance": 0.8}
    stream = io.StringIO()
    console = Screen(stream, redraws=False)
    console.print(runs_table([run | {"model": "gpt2", "sites": ["blocks.2.hook_mlp_out"]}]), width=columns, crop=False)
    (row,) = (line for line in stream.getvalue().splitlines() if name in line)
    assert row.split() == [name, "finished", "0.800"] and "members, date" in stream.getvalue()


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_the_tables_of_commands_keep_their_numbers_whole(columns):
    heads = ("", "strength", "watched tokens' probability", "change", "perplexity", "distinct tokens")
    rows = [("difference in means", "0.35", "0.00464", "+0.00432", "2260.4", "73%")]
    estimates = {
        f"random weights, kind {i}": {"one measure, in words": Estimate(0.1, -0.12, 0.34, 3)} for i in range(4)
    }
    stream = io.StringIO()
    console = Screen(stream, redraws=False)
    for table in (
        fitted(heads, rows, Spare(("change", "distinct tokens"), "--json"), words=("",)),
        StudyTable(estimates),
    ):
        console.print(table, width=columns, crop=False)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= columns and "…" not in text
    assert "0.00464" in text and "2260.4" in text and text.count("[-0.1, 0.3]") == 4
    assert ("+0.00432" in text) == (columns > 60) or "left out: change" in text


def test_the_star_is_explained_in_the_box():
    stream = io.StringIO()
    Terminal(stream=stream).results(results(member_ids(3)), "runs/x")
    assert re.search(
        r"^║ ★ +highest explained variance for its target L0, with an L0 within 10% of it +║$", stream.getvalue(), re.M
    )
    stream = io.StringIO()
    Terminal(stream=stream).results(results(member_ids(1)), "runs/x")
    assert "★" not in stream.getvalue()  # a single member gets no star


def test_a_failed_member_is_named_in_the_box():
    stream = io.StringIO()
    Terminal(stream=stream).results(results(member_ids(3), failed="relu-256"), "runs/x")
    text = stream.getvalue()
    assert re.search(r"relu-256 +failed ", text)
    assert "relu-256  stopped at step 3,000: the loss is not finite; try a lower --lr" in text


def test_shortened_ids_stay_different():
    assert told_apart(["relu-f8-l16-lr1e-3-s0", "relu-f8-l32-lr1e-3-s0"]) == ["l16", "l32"]
    rates = ["relu-f8-l16-lr1e-3-s0", "relu-f8-l16-lr1e-4-s0"]  # the hyphen of an exponent does not separate parts
    assert told_apart(rates) == ["lr1e-3", "lr1e-4"]
    assert told_apart(["relu-l8-f8-l4", "relu-l4-f8-l8"]) == ["l8-l4", "l4-l8"], "layer 8 is not the L0 of 8"
    assert told_apart(["a-b", "a-b-a"]) == ["a-b", "a-b-a"] and told_apart(["a-b"]) == ["a-b"]


def test_the_activation_is_added_to_ids_without_it():
    stream = io.StringIO()
    Terminal(stream=stream).results(results(["a", "b"]), "runs/x")
    assert "relu a " in stream.getvalue() and "jump_relu b " in stream.getvalue()


def test_names_are_printed_as_they_are():
    stream = io.StringIO()
    name, path = "relu[red]x[/red]:smile:", "/data/[bold]runs[/bold]/[/]"
    with Terminal(stream=stream) as terminal:
        terminal.say(f"a store at {path} 1,234 'quoted'")
        terminal.progress("[b]harvest", 10, 10)
        terminal.training_progress(progress(1, [name]))
        terminal.results(results([name, "relu-\x1b[31m-evil\r"], model="org/[model]"), path)
    text = stream.getvalue()
    assert f"a store at {path} 1,234 'quoted'\n" in text and "[b]harvest" in text and "org/[model]" in text
    assert text.count(name) == 2 and f"results  {path} " in text
    assert "\x1b" not in text and "relu-\ufffd[31m-evil\ufffd" in text


def test_names_are_printed_as_they_are_on_a_terminal():
    lines, _ = on_a_terminal("odd_names()", 80)
    assert any(line.startswith("relu[red]x[/red] ") for line in lines)
    assert lines[:2] == ["the store lies at [/]:", "/data/" + "a" * 90]  # wrapped by the terminal: can be copied


def test_a_command_to_paste_has_no_newline_in_it():
    """Only the terminal wraps it: what is copied is one line."""
    _, raw = on_a_terminal("long_command()", 80)
    assert LONG_COMMAND.encode() in raw


LONG_COMMAND = "python main.py steer " + "/runs/of-a-long-name" * 3 + " --member ID --feature 137 --sweep"


def long_command() -> None:
    with Terminal() as terminal:
        terminal.say(f"next: {LONG_COMMAND}")


def odd_names() -> None:
    with Terminal() as terminal:
        terminal.training_progress(progress(1, ["relu[red]x[/red]"]))
        terminal.say("the store lies at [/]: /data/" + "a" * 90)


def test_a_path_that_is_wider_than_the_screen_is_printed_in_full():
    path = "/scratch/" + "x" * 200 + "/run"
    lines = log_of(1, run_dir=path)
    assert lines[-1] == f"results: {path}" and max(map(len, lines[:-1])) <= LOG_COLUMNS
    assert any(re.search(r"results +/scratch/x+…x+/run ║", line) for line in lines)


def test_a_stream_without_unicode_does_not_crash_the_output():
    call = "fake_run(24, run_dir='runs/\u65e5\u672c' + 'x' * 99)"
    lines, sent = on_a_terminal(call, 80, PYTHONIOENCODING="ascii")
    assert sent.isascii() and max(map(len, lines[:-5])) <= 80
    assert any(re.search(r"^relu-seed0  .*  #[_.:=+*#-]+_$", line) for line in lines)
    assert any("EXPERIMENT RESULTS" in line for line in lines) and "results: runs/??" + "x" * 99 in lines


def test_losses_that_are_not_finite_do_not_break_the_display():
    curve = LossCurve()
    for loss in (8.0, math.nan, math.inf, -math.inf, 1.0):
        curve.append(loss)
    assert curve.draw(10, TICKS, "×") == "█×××▁"
    lines, _ = on_a_terminal("odd_losses()", 80)
    assert any(re.search(r"^relu-256 +nan +nan +nan +nan  .*×$", line) for line in lines)
    assert not any("Traceback" in line for line in lines)


def odd_losses() -> None:
    with Terminal() as terminal:
        for step, loss in enumerate([5.0, math.inf, -math.inf, 1e308, -1e308, 0.0, math.nan], start=1):
            terminal.training_progress(progress(step, ["relu-256"], loss))
        members = {"relu-256": {"loss": math.nan}, "empty": {}}
        terminal.training_progress(Progress(8, 9, math.nan, math.inf, math.nan, members, {}))


def test_a_curve_goes_from_its_lowest_to_its_highest_loss():
    def drawn(losses, columns=8):
        curve = LossCurve()
        for loss in losses:
            curve.append(loss)
        return curve.draw(columns, TICKS, "×")

    assert drawn([8, 7, 6, 5, 4, 3, 2, 1]) == TICKS[::-1]
    assert drawn([10.0**-i for i in range(8)]) == TICKS[::-1]  # over more than a decade the scale is logarithmic
    assert drawn([3.0] * 8) == "▁" * 8 and drawn([]) == "" and drawn([1.0], 0) == ""
    assert drawn([4, 4, 3, 3, 2, 2, 1, 1], columns=4) == "█▆▃▁"


def test_a_curve_of_a_long_run_stays_small_and_keeps_its_shape():
    curve = LossCurve()
    for i in range(100_000):
        curve.append(100_000 - i)
        assert len(curve._points) < CURVE_POINTS
    assert re.fullmatch("█+▇+▆+▅+▄+▃+▂+▁+", curve.draw(80, TICKS, "×"))


def test_importing_it_loads_nothing_heavy():
    code = "import sys, analysis.ui.terminal.live; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "jax", "flax", "numpy", "pydantic", "datasets", "transformers"} & set(modules.split())


# A sign of life.


def silent(stream=None) -> None:
    """A run that has nothing to report for a while, before and during a phase."""
    with Terminal(stream=stream) as terminal:
        terminal.begin("loading the model")
        time.sleep(SILENT_SECONDS + 1)
        terminal.progress("harvest", 10, 20)
        time.sleep(SILENT_SECONDS + 1)
        terminal.progress("harvest", 20, 20)
        terminal.say("done")


def test_a_log_is_never_silent_for_long():
    stream = io.StringIO()
    silent(stream)
    lines = [re.sub(r"  [\d.]+ tokens/s", "", line) for line in stream.getvalue().splitlines()]
    assert lines == [
        "loading the model",
        "still loading the model (3 s)",
        "harvest  10/20 tokens  50%",
        "still working on: harvest (3 s)",
        "harvest  20/20 tokens  100%  done",
        "done",
    ]


def test_a_sign_of_life_is_removed_from_the_screen():
    lines, sent = on_a_terminal("silent()", 80)
    assert b"still loading the model (3 s)" in sent and b"still working on: harvest (3 s)" in sent
    kept = [line for line in lines if line]
    assert kept[0] == "loading the model" and "done" in kept and "still" not in "".join(kept)


def test_a_log_shows_the_latest_progress_if_it_was_not_due():
    stream = io.StringIO()
    with Terminal(stream=stream) as terminal:
        terminal.progress("harvest", 1, 20)
        terminal.progress("harvest", 2, 20)
        time.sleep(SILENT_SECONDS + 0.5)
        assert stream.getvalue().splitlines()[-1].startswith("harvest  2/20 tokens")


def test_the_time_left_leaves_the_first_part_of_the_work_out():
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream=stream, clock=clock) as terminal:
        for now, done in ((0, 0), (100, 1), (110, 2), (120, 3)):  # the first part compiles for 90 seconds
            clock.now = now
            terminal.progress("probing", done, 10)
    assert stream.getvalue().splitlines()[-1].endswith("1 min 10 s left")
