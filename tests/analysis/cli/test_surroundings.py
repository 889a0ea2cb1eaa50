"""Trouble from the system, the shell or the user: a command ends with one sentence and no traceback."""

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import ROOT

import main
from analysis.cli.exit_status import os_trouble
from analysis.cli.flags import filled, parsed
from analysis.cli.output import Output
from analysis.cli.steer import Options as SteerOptions
from analysis.ui.terminal.live import Terminal
from harvest.errors import InputError
from harvest.files import write_atomically, write_json
from sae_jax.config import TrainConfig

ODD = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\x9b31m\ud800"  # clears the screen, renames the window, reverses the text


def said(capsys, *argv: str, status: int = 2) -> str:
    assert main.run_as_command(list(argv)) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


NUMBERS = [
    *(("--lr", value) for value in ("1e300", "1e-300", "nan", "inf", "-inf")),
    *((flag, "1e300") for flag in ("--sparsity", "--target-l0", "--aux-coefficient", "--checkpoint-seconds")),
    *((flag, "1e-300") for flag in ("--target-l0", "--dead-threshold", "--warmup", "--held-out")),
    *((flag, "99999999999999999999") for flag in ("--snapshots", "--ce-windows", "--n-samples", "--log-freq", "--k")),
    ("--ema", "0.9999999999999"),
]


@pytest.mark.parametrize("flag, value", NUMBERS)
def test_a_number_outside_of_float32_is_refused(flag, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flag in said(capsys, flag, value) and not Path("runs").exists()


@pytest.mark.parametrize("name", ["lr", "sparsity", "target_l0", "aux_coefficient"])
@pytest.mark.parametrize("value", [1e300, 10**400, 1e-300])
def test_a_number_outside_of_float32_is_refused_in_python(name, value):
    with pytest.raises(InputError, match="of float32"):
        TrainConfig(**{name: value})


EMPTY = [
    *((flag, "") for flag in ("--run-dir", "--cache-dir", "--model-name", "--members")),
    *(("export", "run", "--push-to-hub", " "), ("report", ""), ("steer", "run", "--member", "")),
]


@pytest.mark.parametrize("argv", EMPTY, ids=" ".join)
def test_an_empty_flag_value_is_refused(argv, capsys):
    assert "not set" in said(capsys, *argv)


def test_arguments_that_are_not_valid_text_are_refused(capsys):
    assert r"/tmp/\udcff is not valid utf-8" in said(capsys, "show", "/tmp/\udcff")


@pytest.fixture(params=["fifo", "folder", "device", "link to a device"])
def irregular(request, tmp_path):
    path = tmp_path / "irregular.json"
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "device":
        return Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    return path


def test_irregular_files_are_not_read(irregular, capsys):
    assert f"{irregular} is not a regular file" in said(capsys, "--members", str(irregular))


def test_irregular_files_are_not_replaced(irregular):
    with pytest.raises(InputError, match="not a regular file"):
        write_json(irregular, {})
    values = parsed("steer", None, ["run", "--feature", "1", "--json", str(irregular)], SteerOptions, Output)
    with pytest.raises(InputError, match="not a regular file"):  # before the command's long work
        filled(Output, values)


def test_standard_output_is_not_replaced_by_a_file():
    """/dev/stdout is a link, which a process of root could replace by the file."""
    with pytest.raises(InputError, match="another folder"):
        write_json(Path("/dev/a-file"), {})


def test_a_run_directory_that_is_a_broken_link_is_reported(tmp_path, capsys):
    (link := tmp_path / "run").symlink_to(tmp_path / "nowhere")
    assert f"--run-dir {link}" in said(
        capsys, "--model-name", "bundled", "--dataset", "bundled", "--run-dir", str(link)
    )


# Printed text.


@pytest.mark.parametrize("columns", ["80", "5", "0"])
def test_control_sequences_are_not_printed(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    with Terminal(stream=stream) as terminal:
        terminal.say(ODD)
        terminal.show(ODD)
        terminal.progress(ODD, 1, 2)
    own = stream.getvalue()
    assert "owned" in own and not {"\x07", "\u202e", "\x9b", "\ud800"} & set(own)
    assert "\x1b[2J" not in own and "\x1b]" not in own
    assert "\x1b" not in said(capsys, "show", f"/nowhere/{ODD[:-1]}")


def test_brackets_in_a_table_are_printed():
    from rich.table import Table

    table = Table("[/]")
    table.add_row("[red]x[/blue]")
    stream = io.StringIO()
    Terminal(stream=stream).show(table)
    assert "[red]x[/blue]" in stream.getvalue() and "[/]" in stream.getvalue()


def process(*argv: str, script: str | None = None, **options) -> subprocess.Popen:
    command = [sys.executable, *((ROOT / "main.py",) if script is None else ("-c", script)), *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, text=True, cwd=ROOT, **pipes)


def test_a_closed_output_pipe_is_no_error():
    reads, writes = os.pipe()
    os.close(reads)
    running = process("--preset", "list", stdout=writes)
    os.close(writes)
    assert running.communicate(timeout=120)[1].startswith("error: the output pipe was closed")
    assert running.returncode == 141


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_does_not_crash_a_command(closed):
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} main.py --preset list {closed}"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stream_without_unicode_shows_the_help():
    running = process("--help", env=os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "5"})
    assert running.communicate(timeout=120)[1] == "" and running.returncode == 0


# Limits of the system.


@contextmanager
def at_most(limit: int, value: int):
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(limit, (soft, hard))


def test_a_file_without_room_on_disk_is_named(tmp_path):
    with at_most(resource.RLIMIT_FSIZE, 100), pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "large.json", lambda file: file.write(bytes(1000)))
    assert caught.value.filename == str(tmp_path / "large.json") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.ENOSPC, "the disk is full, so {} cannot be written: free some space, then "),
        (errno.EMFILE, "too many open files, so {} cannot be opened: allow more (ulimit -n 4096), then "),
        (errno.EACCES, "Permission denied: {}: check the path and its permissions"),
    ],
)
def test_advice_fits_the_command(number, words, tmp_path, monkeypatch, capsys):
    error = OSError(number, os.strerror(number), str(tmp_path / "a file"))

    def raised(argv):
        raise error

    monkeypatch.setattr(main, "main", raised)
    expected = "error: " + words.format(tmp_path / "a file")
    assert said(capsys, "report", "run", status=1).startswith(expected)
    assert said(capsys, "--lr", "1", status=1).startswith(expected)
    if number != errno.EACCES:
        assert "--resume" in said(capsys, "--lr", "1", status=1)
        assert "--resume" not in said(capsys, "report", "run", status=1)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "none", "a.json"), ModuleNotFoundError("no hooks")])
def test_a_library_of_another_version_is_named_if_something_fails(error, tmp_path, monkeypatch, capsys):
    def raised(argv):
        raise error

    monkeypatch.setattr(main, "main", raised)
    metadata = tmp_path / "transformer_lens-3.9.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: transformer_lens\nVersion: 3.9.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = said(capsys, "report", "run", status=1)
    assert "; perhaps because transformer_lens 3.9.0 is installed, but sae-jax needs <5,>=4.3: then install" in found


def test_a_disk_without_inodes_is_distinguished_from_a_full_one(tmp_path, monkeypatch):
    room = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([*room[:7], 0, *room[8:]]))
    trouble = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "a"))
    assert "out of inodes" in os_trouble(trouble, "again")


# Signals.

SLOW = """
import main, sys, time
def work(argv):
    try:
        print("working", flush=True)
        while True:  # a signal that comes just before a sleep is handled only after it
            time.sleep(.1)
    finally:
        print("leaving", flush=True)
        time.sleep({leaving})
main.main = work
sys.exit(main.run_as_command(["report"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_a_message(number):
    running = process(script=SLOW.format(leaving=0))
    assert running.stdout.readline() == "working\n"
    running.send_signal(number)
    assert "the same command again to start over" in running.communicate(timeout=60)[1] and running.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_command_without_a_message(number):
    running = process(script=SLOW.format(leaving=60))
    assert running.stdout.readline() == "working\n"
    running.send_signal(number)
    assert running.stdout.readline() == "leaving\n"
    began = time.monotonic()
    running.send_signal(number)
    assert running.communicate(timeout=30)[1] == "" and time.monotonic() - began < 20
    assert running.returncode == -number


def test_fewer_steps_are_said_if_the_text_is_shorter_than_asked(tmp_path, capsys):
    text, run = tmp_path / "text.jsonl", tmp_path / "run"
    lines = [json.dumps({"text": f"Ship {n} sailed over the sea to port {n % 7}. " * 9}) for n in range(60)]
    text.write_text("\n".join(lines))
    flags = f"--model-name bundled --dataset {text} --n-samples 5000 --seq-len 10 --epochs 1 --ce-windows 0".split()
    flags += ["--snapshots", "0", "--run-dir", str(run)]
    assert main.run_as_command([*flags, "--cache-dir", str(tmp_path / "cache")]) == 0
    printed = capsys.readouterr().out
    steps = json.loads((run / "results.json").read_text())["timing"]["steps"]
    assert f"so there are {steps:,} steps instead of 632" in printed
