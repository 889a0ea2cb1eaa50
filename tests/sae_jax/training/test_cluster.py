"""Several processes that train together: they end with one line each, whatever happens to one of them."""

import signal
import socket
import time

import pytest
from clusters import SMALL, ended, free_port, start, start_all
from command_line import shared_cache, typed

from harvest.errors import InputError
from harvest.files import read_json
from sae_jax.training.cluster import Cluster, cluster_asked

LONG = (*SMALL, "--epochs", "2000", "--checkpoint-seconds", "0.5")
EXITS = 30  # seconds within which every process has to end


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.mark.parametrize(
    "flags, reason",
    [
        (("host:1", 2, None), "--process-id"),
        ((None, 2, 0), "--coordinator"),
        (("host", 2, 0), "host and a free port"),
        (("host:1", 2, 2), "0 to 1"),
    ],
)
def test_flags_that_name_no_process_are_refused(flags, reason):
    with pytest.raises(InputError, match=reason):
        cluster_asked(*flags)


def test_a_cluster_is_found_in_the_environment_only_if_it_has_several_processes(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert cluster_asked(None, None, None) is None and cluster_asked("host:1", 1, 0) is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert cluster_asked(None, None, None) is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert cluster_asked(None, None, None) == Cluster()
    assert cluster_asked("host:1", 2, 1) == Cluster("host:1", 2, 1)


def test_two_processes_fill_one_run_directory_as_one_process_does(tmp_path, cache):
    together = (*SMALL, "--epochs", "2", "--mesh", "members=2")
    assert ended(start_all(2, cache, *together, "--run-dir", tmp_path / "two")) == [(0, ""), (0, "")]
    assert typed(*together, "--run-dir", tmp_path / "one", cache=cache).returncode == 0
    one, two = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
    results = [read_json(tmp_path / name / "results.json", "")["members"] for name in ("one", "two")]
    assert results[0] == results[1]


@pytest.mark.slow
def test_a_stop_of_one_process_stops_all_and_the_run_goes_on_in_one_process(tmp_path, cache):
    run = tmp_path / "run"
    processes = start_all(2, cache, *LONG, "--run-dir", run)
    wait_for_checkpoint(run, processes)
    processes[1].send_signal(signal.SIGINT)
    told = ended(processes, EXITS)
    assert [status for status, _ in told] == [130, 130]
    assert all("stopped and saved at step" in err and len(err.splitlines()) == 1 for _, err in told)
    resumed = typed(*LONG, "--run-dir", run, "--resume", "--quiet", cache=cache)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_others_with_a_line(tmp_path, cache, victim):
    run = tmp_path / "run"
    processes = start_all(2, cache, *LONG, "--run-dir", run)
    wait_for_checkpoint(run, processes)
    processes[victim].kill()
    began = time.monotonic()
    _, err = ended(processes)[1 - victim]
    assert time.monotonic() - began < EXITS
    assert len(err.splitlines()) == 1 and "process" in err and "--resume" in err, err


def wait_for_checkpoint(run, processes) -> None:
    for _ in range(3000):
        if any(path.name.isdigit() for path in (run / "checkpoints").glob("*")):
            return
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.1)
    raise AssertionError("no checkpoint")


@pytest.mark.slow
def test_a_process_without_the_others_says_so(tmp_path, cache):
    began = time.monotonic()
    ((status, err),) = ended([start(1, 2, free_port(), cache, *SMALL, "--run-dir", tmp_path / "run")])
    assert time.monotonic() - began < EXITS and status
    assert len(err.splitlines()) == 1 and "not all processes have come" in err, err


def test_a_port_in_use_is_named(tmp_path, cache):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ((status, err),) = ended([start(0, 2, port, cache, *SMALL, "--run-dir", tmp_path / "run")])
    assert status == 2 and len(err.splitlines()) == 1 and "port is in use" in err, err


@pytest.mark.slow
def test_an_id_that_is_given_twice_is_named(tmp_path, cache):
    processes = start_all(2, cache, *LONG, "--run-dir", tmp_path / "run")
    port = int(processes[0].args[-5].rpartition(":")[2])
    wait_for_checkpoint(tmp_path / "run", processes)
    twice = start(1, 2, port, cache, *LONG, "--run-dir", tmp_path / "run")
    told = ended([*processes, twice], 2 * EXITS)
    assert all(status and len(err.splitlines()) == 1 for status, err in told), told
    assert any("process 1 was started twice" in err for _, err in told), told


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(tmp_path, cache):
    port, run = free_port(), ("--run-dir", tmp_path / "run")
    processes = [start(0, 2, port, cache, *SMALL, *run), start(1, 2, port, cache, *SMALL, "--lr", "0.01", *run)]
    told = ended(processes)
    assert all(status and len(err.splitlines()) == 1 for status, err in told), told
    assert any("differ in settings" in err for _, err in told), told


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_training_ends_all_processes(tmp_path, cache, number):
    """One process is stopped while it loads the language model or harvests."""
    many = (*LONG, "--n-samples", "3000", "--seq-len", "40", "--run-dir", tmp_path / "run")
    processes = start_all(2, tmp_path / "cache", *many)
    while not (tmp_path / "cache" / "activations").exists():
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.05)
    processes[1].send_signal(number)
    told = ended(processes, EXITS)
    assert all(status and len(err.splitlines()) == 1 for status, err in told), told
