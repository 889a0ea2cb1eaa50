"""The command line: its output, the files it leaves, and its messages for bad input.

Tests of the exit status and of streams start a process. Other tests call `run_as_command`, which such a process runs.
"""

import json
import math
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from command_line import BUNDLED, ROOT, THREE_KINDS, environment, files_of, shared_cache, start, typed
from safetensors.numpy import load_file

import main
from analysis import training
from analysis.cli import train as train_command
from analysis.cli.output import Output
from analysis.ui.terminal.wording import folded
from harvest import capture
from harvest.request import HarvestRequest
from harvest.sources import named_files, resolve
from sae_jax import cost as plan
from sae_jax.config import TrainConfig
from sae_jax.run_directory import LOCK

SMOKE = (*BUNDLED, "--n-samples", "100", "--seq-len", "10", "--epochs", "2", "--activation", "relu")
SMOKE_ID = "relu-f256-l32-lr1e-3-s0"
TRAIN_ROWS = 810  # of the smoke test: 90 windows of 10 tokens, the first of which is left out
TINY = (*BUNDLED, "--n-samples", "100", "--seq-len", "10", "--epochs", "1", "--hidden-dim", "48", "--target-l0", "8")
TINY += ("--block-steps", "1")
HEAVY = ["torch", "jax", "transformers", "transformer_lens", "datasets", "orbax", "wandb", "umap", "matplotlib"]
HEAVY += ["altair", "vl_convert"]
METRICS = ["explained_variance", "explained_variance_train", "explained_variance_z", "mse", "l0", "sparsity", "l1"]
METRICS += ["cosine", "dead_fraction"]
METRICS += ["ce_clean", "ce_sae", "ce_zero", "ce_mean", "ce_recovered", "kl_sae", "kl_zero", "kl_recovered"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="session")
def smoke(cache, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """The smoke test's command, run once: (the finished process, its run directory)."""
    run = tmp_path_factory.mktemp("runs") / "smoke"
    return typed(*SMOKE, "--run-dir", run, cache=cache, cwd=run.parent), run


@pytest.fixture(autouse=True)
def for_this_process(monkeypatch, cache):
    for name, value in environment(cache).items():
        monkeypatch.setenv(name, value)


def status_of(*argv: object) -> int:
    try:
        return main.run_as_command([str(a) for a in argv])
    except SystemExit as e:  # raised by argparse
        return e.code


# Checks that load nothing heavy.


def test_help_is_fast_and_shows_every_field(monkeypatch, cache):
    monkeypatch.setenv("COLUMNS", "1000")  # so that no line is wrapped
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    help = typed("--help", cache=cache)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # CPU time, which other processes do not change
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1
    assert help.returncode == 0 and not help.stderr
    flags = {word for line in help.stdout.splitlines() for word in line.split()[:1]}
    for cls in (HarvestRequest, TrainConfig, train_command.Options, Output):
        for field in fields(cls):
            assert "--" + field.name.replace("_", "-") in flags
            assert field.metadata["help"] in help.stdout
    assert {"--no-normalize", "--no-dead-resample"} <= flags


@pytest.mark.parametrize("command", main.COMMANDS)
def test_the_help_of_a_command_is_fast(command, cache):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    help = typed(script=f"import main; main.run_as_command([{command!r}, '--help'])", cache=cache, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert help.stdout.startswith(f"usage: python main.py {command}") and not help.stderr
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1


def test_a_command_that_does_not_exist_is_answered_with_those_that_do(capsys):
    assert main.run_as_command(["shwo", "runs/first"]) == 2
    assert "shwo: there is no such command: did you mean show?" in capsys.readouterr().err


def test_an_error_on_a_terminal_breaks_no_word_no_path_and_no_command():
    words = "there is no run at /tmp/" + "a" * 30 + ": give another, or `python main.py runs FOLDER` lists those there"
    lines = folded(words, 40).split("\n")
    assert " ".join(lines) == words and all(len(line) <= 40 for line in lines)
    assert "`python main.py runs FOLDER` lists those" in lines


def test_every_command_is_a_file():
    files = {path.stem for path in (ROOT / "analysis" / "cli").glob("*.py")} - {
        "__init__",
        "completion",
        "exit_status",
        "flags",
        "found_member",
        "output",
        "overview",
    }
    assert {name.replace("-", "_") for name in main.COMMANDS} == files


def test_importing_loads_nothing_heavy(cache):
    imports = "main, harvest, harvest.request, sae_jax, sae_jax.config, analysis, analysis.ui.terminal.live"
    script = f"import sys, {imports}; print([m for m in {HEAVY} if m in sys.modules])"
    assert typed(script=script, cache=cache, cwd=ROOT).stdout == "[]\n"


# Training.


def test_the_smoke_test_from_text_to_results(smoke):
    done, run = smoke
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("EXPERIMENT RESULTS") == 1 and "╔═" in done.stdout and "╚═" in done.stdout
    assert "\x1b" not in done.stdout
    assert "training on cpu" in done.stdout or "training on gpu" in done.stdout
    assert "harvest/bundled/model" in done.stdout and str(run) in done.stdout
    assert not (run.parent / "runs").exists()

    results = json.loads((run / "results.json").read_text())
    assert results["schema"] == 1 and results["model"]["fell_back"] is False and results["backend"]
    (member,) = results["members"]
    expected = {"id": SMOKE_ID, "activation": "relu", "hidden_dim": 256, "layer": 0, "hook": "resid_pre", "lr": 1e-3}
    expected |= {
        "sparsity": None,
        "target_l0": 32,
        "k": None,
        "seed": 0,
        "failed": None,
        "sparsity_control": "target_l0",
    }
    assert expected.items() <= member.items()
    assert sorted(member["metrics"]) == sorted(METRICS)
    assert all(math.isfinite(value) for value in member["metrics"].values())
    assert 0 < member["metrics"]["explained_variance"] < 1
    assert member["metrics"]["sparsity"] == pytest.approx(1 - member["metrics"]["l0"] / 256)
    assert {"harvest_seconds", "training_seconds", "evaluation_seconds"} <= results["timing"].keys()

    config = json.loads((run / "config.json").read_text())
    assert config["asked"]["harvest"]["n_samples"] == 100 and config["asked"]["train"]["epochs"] == 2
    assert config["stores"][0]["rows"] == TRAIN_ROWS == config["stores"][0]["identity"]["rows"]
    assert config["environment"].keys() >= {"jax", "backend", "device", "python"}

    directory = run / "members" / SMOKE_ID
    assert sorted(p.name for p in directory.iterdir()) == ["cfg.json", "sae_weights.safetensors", "stats.npz"]
    assert json.loads((directory / "cfg.json").read_text())["d_sae"] == 256
    weights = load_file(directory / "sae_weights.safetensors")
    assert weights["W_dec"].shape == (256, 256) and all(np.isfinite(w).all() for w in weights.values())
    density_F = np.load(directory / "stats.npz")["density"]
    assert density_F.sum() == pytest.approx(member["metrics"]["l0"])

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 * (TRAIN_ROWS // 64) and {line["member"] for line in lines} == {SMOKE_ID}
    assert all(math.isfinite(v) for line in lines for v in line.values() if not isinstance(v, str))


def test_a_finished_run_is_shown_and_not_changed(smoke, cache):
    _, run = smoke
    before = files_of(run)
    script = f"""
import sys, main
status = main.run_as_command(sys.argv[1:])
print([m for m in {HEAVY} if m in sys.modules])
sys.exit(status)"""
    began = time.perf_counter()
    again = typed(*SMOKE, "--run-dir", run, cache=cache, script=script, cwd=ROOT)
    assert time.perf_counter() - began < 3
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.endswith("[]\n") and "--force trains it again" in again.stdout
    assert again.stdout.count("EXPERIMENT RESULTS") == 1
    assert files_of(run) == before


def test_force_trains_again_and_quiet_prints_one_line(smoke, cache):
    _, run = smoke
    before = files_of(run)
    forced = typed(*SMOKE, "--run-dir", run, "--force", "--quiet", cache=cache)
    assert (forced.returncode, forced.stdout, forced.stderr) == (0, f"{run}\n", "")
    after = files_of(run)
    assert all(after[name][1] > before[name][1] for name in before if name.startswith(("results", "members", "config")))
    weights = f"members/{SMOKE_ID}/sae_weights.safetensors"
    assert after[weights][0] == before[weights][0] and after["metrics.jsonl"][0] == before["metrics.jsonl"][0]


def test_several_kinds_in_one_run(smoke, cache, tmp_path):
    run = tmp_path / "run"
    done = typed(*THREE_KINDS, "--epochs", "1", "--run-dir", run, cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    members = json.loads((run / "results.json").read_text())["members"]
    assert [m["activation"] for m in members] == ["relu", "jump_relu", "topk"]
    assert [(m["target_l0"], m["k"]) for m in members] == [(8, None), (8, None), (None, 8)]
    assert all(math.isfinite(v) for m in members for v in m["metrics"].values())
    ids = [m["id"] for m in members]
    assert sorted(p.name for p in (run / "members").iterdir()) == sorted(ids)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["member"] for line in lines] == ids * (len(lines) // 3)
    assert all(f"║ {name}" in done.stdout for name in ids)


def test_a_population_over_layers_kinds_and_rates(cache, tmp_path):
    """One command reads the text once, and trains a member for each combination, at the member's layer."""
    run = tmp_path / "run"
    grid = ("--layer", "0", "2", "--activation", "relu", "topk", "--lr", "1e-3", "1e-2", "--k", "8")
    done = typed(*TINY, *grid, "--run-dir", run, cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    members = json.loads((run / "results.json").read_text())["members"]
    expected = [(kind, layer, lr) for kind in ("relu", "topk") for layer in (0, 2) for lr in (1e-3, 1e-2)]
    assert sorted((m["activation"], m["layer"], m["lr"]) for m in members) == sorted(expected)
    assert {p.name for p in (run / "members").iterdir()} == {m["id"] for m in members}
    hooks = {json.loads((run / "members" / m["id"] / "cfg.json").read_text())["metadata"]["hook_name"] for m in members}
    assert hooks == {"blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre"}
    assert all(f"║ {m['id']}" in done.stdout for m in members)


def test_a_failed_member_is_reported_and_the_others_have_results(cache, tmp_path):
    run = tmp_path / "run"
    done = typed(*TINY, "--lr", "1e-3", "1e30", "--epochs", "3", "--run-dir", run, cache=cache)
    assert done.returncode == 0
    good, lost = json.loads((run / "results.json").read_text())["members"]
    assert good["failed"] is None and good["metrics"]["explained_variance"] > 0
    assert (
        lost["metrics"] is None
        and lost["failed"]["step"] >= 1
        and "lower --lr (it is 1e+30)" in lost["failed"]["reason"]
    )
    assert f"{lost['id']} failed at step {lost['failed']['step']}" in done.stdout
    assert not (run / "members" / lost["id"]).exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["member"] for line in lines if line["step"] == lines[-1]["step"]} == {good["id"]}


def test_a_failed_member_stays_failed_after_a_kill(cache, tmp_path):
    argv = (
        *TINY,
        "--lr",
        "1e-3",
        "1e30",
        "--epochs",
        "3",
        "--run-dir",
        tmp_path / "run",
        "--cache-dir",
        cache,
        "--quiet",
    )
    assert status_of(*argv) == 0
    results = tmp_path / "run" / "results.json"
    before = json.loads(results.read_text())["members"]
    results.unlink()
    assert status_of(*argv, "--resume") == 0
    assert json.loads(results.read_text())["members"] == before and before[1]["failed"]


def test_a_failure_by_a_damaged_row_is_not_blamed_on_the_learning_rate(cache, tmp_path, capsys):
    """A damaged row in one of two layers makes the member there fail; the message gives the damage as the reason."""
    argv = (*TINY, "--layer", "0", "2", "--cache-dir", tmp_path / "cache")
    assert status_of(*argv, "--run-dir", tmp_path / "whole", "--quiet") == 0
    stores = json.loads((tmp_path / "whole" / "config.json").read_text())["stores"]
    (damaged,) = (store["directory"] for store in stores if store["hook_name"].startswith("blocks.2"))
    rows = tmp_path / "cache" / "activations" / damaged / "train" / "rows-00000.npy"
    array = np.load(rows, mmap_mode="r+")
    array[:] = np.nan
    array.flush()
    assert "train/rows-00000.npy" in refused(capsys, *argv, "--run-dir", tmp_path / "run", "--quiet")
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_dry_run_lists_members_and_writes_nothing(cache, tmp_path, capsys):
    grid = ("--layer", "0", "2", "--activation", "relu", "topk", "--hidden-dim", "256", "4096")
    assert (
        status_of(*BUNDLED, *grid, "--dry-run", "--run-dir", tmp_path / "run", "--cache-dir", tmp_path / "cache") == 0
    )
    said = capsys.readouterr().out
    assert "8 members in 4 groups, 267,100 steps each" in said
    assert "topk-l2-f4096-k32-lr1e-3-s0" in said and f"{2 * 4096 * 256 + 4096 + 256:,}" in said
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_a_column_that_the_text_lacks(tmp_path, capsys):
    text = tmp_path / "text.jsonl"
    text.write_text('{"body": "The sea was calm."}\n')
    argv = ("--model-name", "bundled", "--dataset", text, "--dry-run", "--cache-dir", tmp_path / "cache")
    assert 'no text under the key "story" (its keys are body)' in refused(capsys, *argv, "--text-column", "story")
    assert status_of(*argv, "--text-column", "body") == 0


# A run directory holds one run only.


def refused(capsys, *argv: object) -> str:
    """The only line on standard error of a refused command."""
    assert status_of(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith("\n")
    return error


@pytest.mark.parametrize("extra", [(), ("--force",), ("--resume",)])
def test_a_run_of_another_configuration_is_refused_and_not_changed(smoke, cache, capsys, extra):
    _, run = smoke
    before = files_of(run)
    error = refused(capsys, *SMOKE, "--lr", "3e-4", "--cache-dir", cache, "--run-dir", run, *extra)
    assert "lr 0.001, not 0.0003" in error and str(run) in error
    assert files_of(run) == before


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_a_directory_with_other_content_is_refused(name, cache, tmp_path, capsys):
    (tmp_path / name).write_text('{"architectures": ["GPT2LMHeadModel"]}')
    assert "is not empty and holds no run" in refused(capsys, *SMOKE, "--cache-dir", cache, "--run-dir", tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


@pytest.mark.parametrize("run", ["file", "file/run"])
def test_a_file_is_refused_as_run_directory(cache, tmp_path, capsys, run):
    (tmp_path / "file").touch()
    error = refused(capsys, *SMOKE, "--cache-dir", cache, "--run-dir", tmp_path / run)
    assert f"{tmp_path / 'file'} is no directory" in error


@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_a_damaged_record_is_named(smoke, cache, tmp_path, capsys, name):
    copy = shutil.copytree(smoke[1], tmp_path / name)
    (copy / name).write_text((copy / name).read_text()[:100])
    assert f"{copy / name} is damaged" in refused(capsys, *SMOKE, "--cache-dir", cache, "--run-dir", copy)


def test_lost_files_of_a_finished_run_are_restored_by_the_advice(smoke, cache, tmp_path, capsys):
    copy = shutil.copytree(smoke[1], tmp_path / "run")
    weights = copy / "members" / SMOKE_ID / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    argv = ("evaluate", copy, "--ce-windows", "0", "--cache-dir", cache)
    told = f"{weights} is damaged (its checksum differs): delete results.json, and --resume writes it again"
    assert told in refused(capsys, *argv)
    (copy / "results.json").unlink()
    assert status_of(*SMOKE, "--resume", "--cache-dir", cache, "--run-dir", copy) == 0
    assert weights.read_bytes() == whole and status_of(*argv) == 0


def test_a_temporary_first_file_does_not_block_a_run_directory(smoke, cache, tmp_path):
    (tmp_path / "config.json.tmp").write_text("{")
    assert status_of(*TINY, "--cache-dir", cache, "--run-dir", tmp_path) == 0


# Bad input: status 2, one line that states the value and what is allowed, and no files.

FLAGS = {
    "an unknown activation": (("--activation", "gelu"), "gelu", "relu, tanh_relu, p_anneal"),
    "one of several unknown": (("--activation", "relu", "tok"), "tok", "relu, tanh_relu, p_anneal"),
    "an activation twice": (("--activation", "relu", "relu"), "relu", "none twice"),
    "no hidden features": (("--hidden-dim", "0"), "0", "1 or more"),
    "hidden features past counting": (("--hidden-dim", "99999999999"), "99999999999", "below"),
    "no batch": (("--batch-size", "-4"), "-4", "1 or more"),
    "no epochs": (("--epochs", "0"), "0", "1 or more"),
    "half an epoch": (("--epochs", "0.5"), "0.5", "no whole number"),
    "k over hidden_dim": (("--activation", "topk", "--k", "300"), "300", "1 to --hidden-dim (256)"),
    "a target of every feature": (("--target-l0", "256"), "256", "under --hidden-dim (256)"),
    "lr of zero": (("--lr", "0"), "0", "positive"),
    "lr that is no number": (("--lr", "nan"), "nan", "the range of float32"),
    "lr in words": (("--lr", "small"), "small", "float"),
    "a negative penalty": (("--sparsity", "-1"), "-1", "0 or a positive number"),
    "an unknown hook": (("--hook", "resid_up"), "resid_up", "resid_pre, resid_mid, resid_post, mlp_out, attn_out"),
    "one of several hooks unknown": (("--hook", "mlp_out", "up"), "--hook up:", "resid_pre, resid_mid"),
    "a layer below the first": (("--layer", "-1"), "-1", "0 to 2147483647"),
    "a layer above the last": (("--layer", "99"), "99", "must be 0 to"),
    "a layer in words": (("--layer", "first"), "first", "no whole number"),
    "a layer twice": (("--layer", "0", "0"), "0 0", "none twice"),
    "a window longer than the model's": (("--seq-len", "4096"), "4096", "at most"),
    "everything held out": (("--held-out", "1"), "1", "give a value below 1"),
    "one window": (("--n-samples", "1"), "1", "at least 2"),
    "a number format unknown": (("--store-dtype", "int4"), "int4", "float32, int8"),
    "a seed too large": (("--seed", "2147483648"), "2147483648", "0 to 2147483647"),
    "no time between checkpoints": (("--checkpoint-seconds", "0"), "0", "positive"),
    "a batch larger than the rows": (("--batch-size", "811"), "811", "larger than the 810 training rows"),
    "a model that cannot be had": (("--model-name", "no-such/model"), "no-such/model", "bundled"),
    "a model directory that is none": (("--model-name", "./nowhere"), "./nowhere", "no such file or directory"),
    "a data set that is not there": (("--dataset", "missing.txt"), "missing.txt", "no such file or directory"),
    "a flag that is none": (("--learning-rate", "1"), "--learning-rate", "--help"),
    "a flag cut short": (("--activ", "relu"), "--activ", "--help"),
    "a word too many": (("train",), "train", "--help"),
    "a flag of other kinds": (("--k", "8"), "--k", "no effect on --activation relu"),
    "another flag of other kinds": (("--aux-coefficient", "0"), "--aux-coefficient", "no effect on --activation relu"),
    "both ways to go on": (("--resume", "--force"), "--resume continues", "one of them"),
}


@pytest.mark.parametrize("flags, value, allowed", FLAGS.values(), ids=FLAGS)
def test_bad_input(flags, value, allowed, smoke, cache, tmp_path, capsys):
    stores = files_of(cache / "activations")
    error = refused(capsys, *SMOKE, "--cache-dir", cache, "--run-dir", tmp_path / "run", *flags)
    assert value in error and allowed in error
    assert [path for path in tmp_path.rglob("*") if path.is_file()] in ([], [tmp_path / "run" / LOCK])
    assert files_of(cache / "activations") == stores


TEXTS = {
    "an empty file": ("text.txt", b"", "is empty"),
    "no document": ("text.jsonl", b"\n\n", "no document"),
    "too short for one window": ("text.txt", b"Too short.\n\nThis one too.", "the longest has"),
    "no text under the key": ("text.jsonl", b'{"body": 3}\n', '"text"'),
    "a kind unknown": ("text.pdf", b"%PDF", ".txt, .jsonl"),
}


@pytest.mark.parametrize("name, content, allowed", TEXTS.values(), ids=TEXTS)
def test_bad_text(name, content, allowed, cache, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    empty_cache = tmp_path / "cache"
    argv = (*SMOKE, "--dataset", tmp_path / name, "--cache-dir", empty_cache, "--run-dir", tmp_path / "runs" / "run")
    error = refused(capsys, *argv)
    assert str(tmp_path / name) in error and allowed in error
    assert not (tmp_path / "runs").exists() and all(name.endswith(".lock") for name in files_of(empty_cache))


def test_bad_input_in_a_separate_process(tmp_path):
    answer = typed("--activation", "gelu", "--run-dir", "run", cache=Path("cache"), cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("error: --activation gelu: must be one of relu, tanh_relu, ")
    assert not list(tmp_path.iterdir())


# Damage to activations that were harvested earlier.


def test_missing_and_damaged_shards_are_named(smoke, cache, tmp_path, capsys):
    shutil.copytree(cache / "activations", tmp_path / "cache" / "activations")
    store = json.loads((smoke[1] / "config.json").read_text())["stores"][0]["directory"]
    rows = tmp_path / "cache" / "activations" / store / "train" / "rows-00000.npy"
    argv = (*TINY, "--cache-dir", tmp_path / "cache", "--run-dir", tmp_path / "run")
    with open(rows, "r+b") as file:
        file.truncate(1000)
    error = refused(capsys, *argv)
    assert "of another size" in error and "train/rows-00000.npy" in error and str(rows.parents[1]) in error
    rows.unlink()
    (rows.parents[1] / "held_out" / "tokens-00000.npy").unlink()
    error = refused(capsys, *argv)
    assert "missing" in error and "train/rows-00000.npy, held_out/tokens-00000.npy" in error
    assert not (tmp_path / "run").exists()


# Training that cannot continue.


@pytest.mark.parametrize("batch_size, step", [(64, 1), (TRAIN_ROWS, 1)], ids=["within", "at the last step"])
def test_a_loss_that_is_not_finite_is_reported_and_gives_no_results(batch_size, step, smoke, cache, tmp_path, capsys):
    run = tmp_path / "run"
    argv = (*TINY, "--lr", "1e30", "--batch-size", batch_size, "--cache-dir", cache, "--run-dir", run)
    assert status_of(*argv) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "relu-f48-l8-lr1e30-s0" in error and f"at step {step}" in error
    assert "lower --lr (it is 1e+30)" in error
    assert not (run / "results.json").exists()


def test_one_held_out_row_is_too_few(cache, tmp_path, capsys):
    """A single held-out row has no variance to explain. The error comes before training, not after it."""
    argv = (*TINY, "--n-samples", "8", "--seq-len", "2", "--batch-size", "4", "--cache-dir", cache)
    assert "longer text" in refused(capsys, *argv, "--run-dir", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


# The cache of compiled programs is off, because JAX would leave truncated entries in it for later tests.
LITTLE_ROOM = """
import os, resource, sys, main
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
sys.exit(main.run_as_command(sys.argv[1:]))"""


def test_a_disk_that_fills_up_in_training(smoke, cache, tmp_path):
    """The kernel limits metrics.jsonl to 4,000 bytes; without the limit, the run continues."""
    argv = (*TINY, "--epochs", "3", "--run-dir", tmp_path / "run", "--quiet")
    full = typed(*argv, cache=cache, script=LITTLE_ROOM, cwd=ROOT)
    assert (full.returncode, full.stdout) == (1, "")
    assert "Traceback" not in full.stderr
    assert full.stderr.splitlines()[-1].startswith("error: the disk is full")
    assert not (tmp_path / "run" / "results.json").exists()
    assert status_of(*argv, "--resume", "--cache-dir", cache) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 3 * (TRAIN_ROWS // 64) + 1))


def test_a_disk_without_room_for_a_checkpoint(smoke, cache, tmp_path):
    """The disk is a real file system of 256 kB. The test is skipped if none can be mounted."""
    mount = ("unshare", "--mount", "--map-root-user", "sh", "-c")
    mount += ('mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"', tmp_path)
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no file system of one's own can be mounted here")
    argv = (*TINY, "--cache-dir", cache, "--run-dir", tmp_path / "run", "--quiet")
    full = subprocess.run([*mount, sys.executable, ROOT / "main.py", *argv], capture_output=True, text=True)
    assert (full.returncode, full.stdout) == (1, "")
    assert full.stderr.startswith("error: the disk is full") and full.stderr.count("\n") == 1


def test_only_the_default_text_falls_back_beside_a_named_model(cache, tmp_path):
    """The command runs in a separate process, because the hub client reads its environment when it is imported."""
    model = ("--model-name", ROOT / "harvest" / "bundled" / "model")
    sizes = ("--n-samples", 100, "--seq-len", 10, "--epochs", 1)
    done = typed(*model, *sizes, "--run-dir", tmp_path / "run", cache=cache)
    assert done.returncode == 0, done.stderr
    assert "there is no local copy of NeelNanda/pile-10k" in done.stdout
    store = json.loads((tmp_path / "run" / "config.json").read_text())["stores"][0]
    assert (store["model"]["fell_back"], store["dataset"]["fell_back"]) == (False, True)


def test_two_processes_do_not_train_in_one_directory(smoke, cache, tmp_path):
    argv = (*SMOKE[:-4], "--epochs", 2000, "--run-dir", tmp_path / "run")
    first = start(*argv, cache=cache)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and first.poll() is None:
        time.sleep(0.02)
    second = typed(*argv, "--force", cache=cache)
    first.kill()
    first.communicate()
    assert second.returncode == 2 and "another process is training in it" in second.stderr


def test_a_changed_text_gives_another_run(cache, tmp_path):
    text = tmp_path / "t.jsonl"
    lines = [json.dumps({"text": f"{i} " + "the sea and the ship and the storm " * 20}) + "\n" for i in range(60)]
    argv = ("--model-name", "bundled", "--dataset", text, "--n-samples", 100, "--seq-len", 10, "--epochs", 1)
    text.write_text("".join(lines))
    before = named_files(HarvestRequest(dataset=str(text)))
    text.write_text("".join(reversed(lines)))
    assert named_files(HarvestRequest(dataset=str(text))) != before
    run = tmp_path / "run"
    assert typed(*argv, "--run-dir", run, cache=cache).returncode == 0
    text.write_text("".join(lines))
    again = typed(*argv, "--run-dir", run, cache=cache)
    assert again.returncode == 2 and "another configuration (other files for --dataset)" in again.stderr


def test_another_configuration_is_told_in_the_flags_that_the_user_types(smoke, capsys):
    _, run = smoke
    other = ("--lr", "1e-2", "--target-l0", "16", "32", "--no-fit-decoder")
    assert status_of(*SMOKE, *other, "--run-dir", run) == 2
    apart = "--fit-decoder on, not off; --lr 0.001, not 0.01; --target-l0 32, not 16 32"
    assert f"holds a run of another configuration ({apart})" in capsys.readouterr().err


def test_a_damaged_shard_is_named_if_the_loss_is_not_finite(smoke, cache, tmp_path):
    argv = (*SMOKE[:-4], "--epochs", 1, "--run-dir", tmp_path / "run")
    shutil.copytree(cache / "activations", tmp_path / "cache" / "activations")
    for rows in (tmp_path / "cache" / "activations").glob("*/train/rows-00000.npy"):
        content = bytearray(rows.read_bytes())
        content[-64:] = b"\xff" * 64  # not a number, in float16
        rows.write_bytes(content)
    done = typed(*argv, cache=tmp_path / "cache")
    assert done.returncode == 2
    assert "train/rows-00000.npy is damaged" in done.stderr and "harvest again" in done.stderr


def test_a_new_run_resolves_model_and_text_once(cache, tmp_path, monkeypatch):
    asked = []

    def counted(*arguments):
        asked.append(arguments)
        return resolve(*arguments)

    for module in (training, capture, plan):
        monkeypatch.setattr(module, "resolve", counted, raising=False)
    argv = [*SMOKE, "--ce-windows", "0", "--run-dir", str(tmp_path / "run"), "--cache-dir", str(cache)]
    assert main.run_as_command(list(map(str, argv))) == 0
    assert len(asked) == 1
