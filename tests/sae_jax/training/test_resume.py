"""A run that was killed or stopped and then resumed equals an uninterrupted one byte for byte.

Six kinds train together, dead features are revived at several steps, a block is short and checkpoints are frequent.
"""

import json
import random
import re
import signal
import time
from pathlib import Path

import pytest
from command_line import THREE_KINDS, files_of, shared_cache, start, start_until, typed
from rows import SEQ_LEN, make_store

from harvest.errors import InputError
from harvest.request import HarvestRequest
from harvest.synthetic import SyntheticRequest, synthesize
from sae_jax.config import TrainConfig
from sae_jax.run_directory import RunDirectory
from sae_jax.training.checkpoint import Checkpoints
from sae_jax.training.loop import train
from sae_jax.training.progress import Interrupted

EPOCHS, STEPS = "25", 25 * 12
KINDS = ("relu", "jump_relu", "topk", "gated", "batch_topk", "matryoshka")
RUN = (*THREE_KINDS, "--epochs", EPOCHS, "--activation", *KINDS)
OFTEN = ("--checkpoint-seconds", "0.1")
NEVER = ("--checkpoint-seconds", "1000")


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def uninterrupted(cache, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = typed(*RUN, *NEVER, "--run-dir", run, cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    return run


def learned(run: Path, kinds: int = len(KINDS)) -> dict[str, bytes | list]:
    """All files of a run directory that depend on the training."""
    kept = [*run.glob("members/*/*"), *run.glob("snapshots/*/*")]
    members = {str(p.relative_to(run)): p.read_bytes() for p in sorted(kept)}
    assert len([name for name in members if name.startswith("snapshots")]) > 5 * kinds
    assert len([name for name in members if name.endswith(".safetensors")]) == kinds
    results = json.loads((run / "results.json").read_text())["members"]
    return {**members, "metrics.jsonl": (run / "metrics.jsonl").read_bytes(), "results": results}


def resumed_at(output: str) -> int:
    found = re.search(r"resuming at step (\d+) of", output)
    return int(found[1]) if found else 0


def test_a_run_that_was_killed_at_random_moments_equals_an_undisturbed_one(uninterrupted, cache, tmp_path, monkeypatch):
    """Each process that resumes the run has another number of devices."""
    run, chance = tmp_path / "run", random.Random(0)
    moments = sorted(chance.sample(range(10, STEPS - 40), 4))
    said = []
    for devices, step in enumerate(moments, 1):  # the first is killed before its first checkpoint
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(devices))
        how = (*OFTEN, "--resume") if said else NEVER
        process = start_until(step, run, *RUN, *how, cache=cache)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        said.append(process.communicate()[0])
        assert process.returncode == -signal.SIGKILL, f"ended before it was killed at step {step} of {moments}"
    last = typed(*RUN, *OFTEN, "--resume", "--run-dir", run, cache=cache)
    assert (last.returncode, last.stderr) == (0, "")

    assert "there is no checkpoint to resume from" in said[1]
    steps = [resumed_at(output) for output in (*said[2:], last.stdout)]
    assert steps == sorted(steps) and 0 < steps[-1] < STEPS, f"killed after {moments}, resumed at {steps}"
    assert learned(run) == learned(uninterrupted)


def test_a_run_stopped_by_a_signal_is_saved_and_says_how_to_continue(uninterrupted, cache, tmp_path):
    run = tmp_path / "run"
    for number, step, resume in ((signal.SIGINT, 40, ()), (signal.SIGTERM, 160, ("--resume",))):
        process = start_until(step, run, *RUN, *NEVER, *resume, cache=cache)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        stopped = re.fullmatch(r"stopped and saved at step (\d+) of 300; .* --resume to continue\n", error)
        assert stopped and step <= int(stopped[1]) < STEPS
        assert not (run / "results.json").exists()

        before = files_of(run)
        again = typed(*RUN, "--run-dir", run, cache=cache)
        assert again.returncode == 2 and again.stdout == ""
        assert f"{run} was interrupted: add --resume to continue, or --force" in again.stderr
        other_rows_are_refused(run, tmp_path / f"store-{number}")
        assert files_of(run) == before

    last = typed(*RUN, "--resume", "--run-dir", run, cache=cache)
    assert (last.returncode, last.stderr) == (0, "")
    assert "so a new one starts there" not in last.stdout
    assert resumed_at(last.stdout) == int(stopped[1]), last.stdout[:900]
    assert learned(run) == learned(uninterrupted)


def test_the_state_is_saved_if_a_signal_comes_after_the_check_for_signals(tmp_path, monkeypatch):
    def due(self) -> bool:
        signal.raise_signal(signal.SIGINT)
        return False

    monkeypatch.setattr(Checkpoints, "due", property(due))
    config = TrainConfig("topk", 48, k=8, batch_size=32, epochs=9, block_steps=4)
    run = RunDirectory(tmp_path / "run", {"train": config.to_json()})
    with pytest.raises(Interrupted) as stopped:
        train(config, [make_store(tmp_path / "store")], run)
    step = re.search(r"stopped and saved at step (\d+) of", str(stopped.value))
    assert step and (run.checkpoints / step[1]).is_dir()


def test_an_interrupted_run_on_synthetic_rows_continues(tmp_path, monkeypatch):
    config = TrainConfig("topk", 48, k=8, batch_size=32, block_steps=4)
    store = synthesize(SyntheticRequest(n_features=48, n_roots=0, train_rows=999, held_out_rows=99), tmp_path)
    asked = {"harvest": HarvestRequest("synthetic").to_json(), "train": config.to_json()}
    run = RunDirectory(tmp_path / "run", asked)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Checkpoints, "due", property(lambda self: signal.raise_signal(signal.SIGINT)))
        train(config, [store], run)
    said = []
    train(config, [store], RunDirectory(run.path, asked), resume=True, say=said.append)
    assert any(text.startswith("resuming at step ") for text in said), said


def test_resuming_from_the_checkpoint_before_a_damaged_one_gives_the_same_run(tmp_path, monkeypatch):
    config, store = TrainConfig("topk", 48, k=8, batch_size=32, epochs=2, block_steps=4), make_store(tmp_path / "store")
    asked = {"harvest": HarvestRequest(seq_len=SEQ_LEN).to_json(), "train": config.to_json()}
    whole, broken = (RunDirectory(tmp_path / name, asked) for name in ("whole", "broken"))
    train(config, [store], whole)
    looks = []

    def due(self) -> bool:
        looks.append(self)
        if len(looks) == 3:
            signal.raise_signal(signal.SIGINT)
        return True

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Checkpoints, "due", property(due))
        train(config, [store], broken)
    assert sorted(path.name for path in broken.checkpoints.iterdir()) == ["12", "16"]
    largest = max((broken.checkpoints / "16").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    said = []
    train(config, [store], broken, resume=True, say=said.append)
    kept = broken.checkpoints / "damaged-16"
    moved = (
        f"the checkpoint of step 16 is damaged and was renamed to {kept}; the one before it is tried, if there is one"
    )
    assert said[-2:] == [moved, "resuming at step 12 of 198"]
    for path in [*whole.path.glob("members/*/*"), whole.path / "metrics.jsonl"]:
        assert (broken.path / path.relative_to(whole.path)).read_bytes() == path.read_bytes()


def other_rows_are_refused(run: Path, directory: Path) -> None:
    """Resuming with the same configuration but other rows is refused."""
    asked = json.loads((run / "config.json").read_text())["asked"]
    config = TrainConfig(**asked["train"])
    store = make_store(directory)
    with pytest.raises(InputError, match=f"another activation store .*rows 810, not {len(store.train)}.* --force"):
        train(config, [store], RunDirectory(run, asked), resume=True)


def test_a_finished_run_is_shown_instead_of_resumed(uninterrupted, cache):
    before = files_of(uninterrupted)
    answer = typed(*RUN, "--resume", "--run-dir", uninterrupted, cache=cache)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "is finished" in answer.stdout and "EXPERIMENT RESULTS" in answer.stdout
    assert "training on" not in answer.stdout
    assert files_of(uninterrupted) == before


@pytest.mark.slow
def test_a_command_may_be_killed_at_any_time(cache, tmp_path):
    """The command is killed once in each fifth of its time, in a harvest of three shards, training and export."""
    argv = (*THREE_KINDS, "--n-samples", "8000", "--seq-len", "20", "--batch-size", "512", "--epochs", "1", *OFTEN)

    def own_cache(name: str) -> Path:
        """A separate cache of activations. Compiled programs stay shared."""
        (cache / "compiled").mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir()
        (tmp_path / name / "compiled").symlink_to(cache / "compiled")
        return tmp_path / name

    for name in ("first", "whole"):  # the first run compiles, the second is timed
        began = time.monotonic()
        done = typed(*argv, "--run-dir", tmp_path / name, cache=(whole_cache := own_cache(f"{name}-cache")))
        assert done.returncode == 0, done.stderr
        seconds = time.monotonic() - began
    assert learned(tmp_path / "first", kinds=3) == learned(tmp_path / "whole", kinds=3)

    chance, steps, harvested = random.Random(1), [], []
    for fifth in range(5):
        run, own = tmp_path / f"run-{fifth}", own_cache(f"cache-{fifth}")
        process = start(*argv, "--run-dir", run, cache=own)
        time.sleep(seconds * (fifth + chance.random()) / 5)
        process.kill()
        process.communicate()
        harvested.append(bool(list(own.glob("activations/*/manifest.json"))))
        last = typed(*argv, "--resume", "--run-dir", run, cache=own)
        assert last.returncode == 0, last.stderr
        assert not last.stderr
        steps.append(resumed_at(last.stdout))
        assert learned(run, kinds=3) == learned(tmp_path / "whole", kinds=3)
        rows = {name: content for name, (content, _) in files_of(own / "activations").items()}
        assert rows == {name: content for name, (content, _) in files_of(whole_cache / "activations").items()}
    assert not harvested[0] and harvested[-1] and max(steps) > 0, (harvested, steps)
