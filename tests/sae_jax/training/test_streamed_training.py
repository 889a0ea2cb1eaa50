"""Streaming runs as a user types them: killed and resumed, next to an undisturbed run and to a run on a store."""

import json
import re
import signal

import psutil
import pytest
from command_line import BUNDLED, shared_cache, start_until, typed

from analysis.runs.finished import FinishedRun

SIZES = (*BUNDLED, "--n-samples", "2000", "--epochs", "2", "--activation", "topk", "jump_relu", "--hidden-dim", "48")
SIZES += ("--k", "8", "--target-l0", "8", "--block-steps", "16", "--dead-threshold", "0.1", "--ce-windows", "0")
STREAMED = (*SIZES, "--stream", "--ring-gb", "0.04", "--sample-rows", "4000")
RESUMED = (*STREAMED, "--checkpoint-seconds", "0.2", "--resume")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = typed(*STREAMED, "--run-dir", run, cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    assert "each of the 2 epochs runs the language model again" in done.stdout
    return run, done.stdout


def learned(run) -> dict:
    files = [*run.glob("members/*/*"), *run.glob("snapshots/*/*"), run / "metrics.jsonl"]
    members = json.loads((run / "results.json").read_text())["members"]
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(files)} | {"members": members}


def test_a_stream_keeps_a_sample_and_no_ring_and_says_who_waited(undisturbed):
    run, said = undisturbed
    finished = FinishedRun.open(run)
    assert re.search(r"[\d,]+ rows are streamed; kept for analyses: 3,990 training rows, [\d,]+ held-out rows", said)
    assert re.search(r"with compiling; it waited \d+% of the time for rows, the language model \d+% for it\)", said)
    assert f"\n{finished.results['timing']['steps']:,} steps: about" in said
    assert 0 <= finished.results["timing"]["producer_wait"] <= 1
    assert not (run / "ring").exists()


def test_a_run_that_is_stopped_and_killed_ends_with_the_same_bytes(undisturbed, cache, tmp_path):
    """The training is stopped, then killed, then its producer is killed, which is started again."""
    run = tmp_path / "run"
    for step, number, status in ((100, signal.SIGINT, 130), (400, signal.SIGKILL, -signal.SIGKILL)):
        process = start_until(step, run, *RESUMED, cache=cache)
        (producer,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == status
        producer.wait(timeout=20)  # it ends with the training
    process = start_until(600, run, *RESUMED, cache=cache)
    psutil.Process(process.pid).children()[0].kill()
    said, trouble = process.communicate(timeout=300)
    assert (process.returncode, trouble) == (0, "")
    assert "resuming at step " in said and "was killed (SIGKILL), and is started again" in said
    assert learned(run) == learned(undisturbed[0])


def test_a_stream_teaches_what_a_store_teaches(undisturbed, cache, tmp_path):
    done = typed(*SIZES, "--run-dir", tmp_path / "run", cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    streamed, stored = (FinishedRun.open(run).results["members"] for run in (undisturbed[0], tmp_path / "run"))
    for one, other in zip(streamed, stored, strict=True):
        assert one["metrics"]["explained_variance"] == pytest.approx(other["metrics"]["explained_variance"], abs=0.02)


def test_flags_of_a_stream_need_one(cache, tmp_path):
    for flags in (("--ring-gb", "2"), ("--producers", "2")):
        refused = typed(*SIZES, *flags, "--run-dir", tmp_path / "run", cache=cache)
        assert refused.returncode == 2
        assert f"{flags[0]} has no effect without --stream: add --stream, or leave {flags[0]} out" in refused.stderr
    refused = typed(*STREAMED, "--producers", "9", "--run-dir", tmp_path / "run", cache=cache)
    assert "--producers 9: must be a whole number, 1 to 8" in refused.stderr
    small = typed(*SIZES, "--stream", "--ring-gb", "0.01", "--run-dir", tmp_path / "run", cache=cache)
    assert "--ring-gb 0.01: the smallest ring for these rows has 0.032 GB: enlarge it" in small.stderr
