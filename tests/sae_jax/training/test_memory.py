"""Runs that need too much memory are refused before they begin, and out-of-memory errors say what needs less."""

import errno

import jax.numpy as jnp
import numpy as np
import psutil
import pytest
import torch
from command_line import BUNDLED
from populations import SITES

import main
from harvest.errors import InputError, is_out_of_memory
from sae_jax.config import TrainConfig
from sae_jax.members import members_of
from sae_jax.training import memory
from sae_jax.training.axes import Axes
from sae_jax.training.memory import available, needed, refuse_too_large
from sae_jax.training.population import groups_of

HUGE = 1 << 50


def throw(error: Exception) -> None:
    raise error


def raised(action) -> Exception:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


@pytest.mark.parametrize(
    "action",
    [
        lambda: np.empty(HUGE),
        lambda: torch.empty(HUGE),
        lambda: jnp.zeros((1 << 20, 1 << 24)).block_until_ready(),
        lambda: bytearray(1 << 62),
        lambda: throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
        lambda: throw(RuntimeError("std::bad_alloc")),
        lambda: throw(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes")),
        lambda: throw(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")),
        lambda: throw(OSError(errno.ENOMEM, "Cannot allocate memory")),
    ],
    ids=["numpy", "torch", "xla", "python", "cuda", "c++", "xla-gpu", "cublas", "system"],
)
@pytest.mark.parametrize(
    "argv, advice", [(["saebench", "run"], "--member"), (["--epochs", "1"], "--hidden-dim"), (["show"], "narrower")]
)
def test_out_of_memory_errors_of_all_libraries_are_recognized(argv, advice, action, monkeypatch, capsys):
    error = raised(action)
    assert is_out_of_memory(error)

    def fails(argv):
        raise ValueError("it could not be done") from error

    monkeypatch.setattr(main, "main", fails)
    assert main.run_as_command(argv) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (") and advice in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "error", [ValueError("a bad shape"), OSError(errno.ENOSPC, "full"), InputError("out of memory")]
)
def test_other_errors_are_not_called_out_of_memory(error):
    assert not is_out_of_memory(error)


ONE_DEVICE = Axes()


def need(axes: Axes = ONE_DEVICE, on_host: bool = True, side_by_side: int | None = None, **values) -> memory.Needed:
    """The need of a population on a CPU, where one member trains at a time, or on accelerators."""
    config = TrainConfig(**values)
    groups = groups_of(members_of(config, SITES), config, 256)
    return needed(groups, config, 1 << 30, axes, on_host, side_by_side or (1 if on_host else 99))


@pytest.mark.parametrize(
    "more", [{"seed": tuple(range(9))}, {"ema": 0.9}, {"hidden_dim": 8192}, {"batch_size": 8192}, {"fit_decoder": True}]
)
def test_estimated_memory_grows_with_the_settings(more):
    less = {"hidden_dim": 4096, "seed": tuple(range(4 if "fit_decoder" in more else 8)), "fit_decoder": False}
    assert sum(need(**less | more).host.values()) > sum(need(**less).host.values())


def test_micro_batches_need_less_and_devices_hold_what_they_train():
    large = {"hidden_dim": 4096, "batch_size": 1 << 16}
    assert sum(need(**large, micro_batches=8).host.values()) < sum(need(**large).host.values()) / 2
    apart = need(hidden_dim=4096, seed=(0, 1), on_host=False)
    assert apart.device["weights and moments"] > 2 * 3 * 4 * 2 * 4096 * 256
    assert "weights and moments" not in apart.host


def test_bytes_of_a_device_fall_along_the_axes_that_split_them():
    """Eight topk members of 4,096 features: weights along members and features, batches along data and features."""
    population = {"hidden_dim": 4096, "seed": tuple(range(8)), "activation": "topk", "batch_size": 4096}
    one_state = 3 * 4 * (2 * 4096 * 256 + 4 * 4096 + 256) + 8 * 4096

    def on_device(axes: Axes, side_by_side: int = 99) -> dict[str, int]:
        return need(axes, on_host=False, side_by_side=side_by_side, **population).device

    def is_split(by: str, axes: Axes) -> bool:
        parts = [on_device(Axes(members=2))[by], on_device(axes)[by]]
        assert parts[0] in (parts[1], pytest.approx(2 * parts[1], abs=8))
        return parts[0] != parts[1]

    held, working, batch = ("weights and moments", "the weights in a step", "the batch in a step")
    assert on_device(Axes())[held] == 8 * one_state and on_device(Axes(members=8))[held] == one_state
    for axes in (Axes(4), Axes(2, features=2)):
        assert all(is_split(by, axes) for by in (held, working, batch))
    assert [is_split(by, Axes(2, data=2)) for by in (held, working, batch)] == [False, False, True]
    alone, beside = (on_device(Axes(), side_by_side) for side_by_side in (1, 4))
    assert alone[held] == beside[held] and 4 * alone[working] == pytest.approx(beside[working], abs=8)
    assert 4 * alone[batch] == beside[batch] == 4 * 6 * 4 * 4096 * 4096


def test_cpu_cores_need_on_the_host_what_all_of_them_need():
    population = {"hidden_dim": 4096, "seed": tuple(range(8)), "fit_decoder": False}
    for axes in (Axes(), Axes(2), Axes(2, 2, 2)):
        together = need(axes, **population)
        for purpose, size in together.device.items():
            assert together.host[purpose] == axes.devices * size
    replicated, split = (need(axes, **population).host for axes in (Axes(data=2), Axes(features=2)))
    assert replicated["weights and moments"] == pytest.approx(2 * split["weights and moments"], rel=1e-6)


@pytest.mark.parametrize("width", [1_000_000, 2**31 - 1])
def test_a_population_too_large_for_memory_is_refused_before_the_harvest(width, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 16 << 30)
    argv = [
        *BUNDLED,
        "--hidden-dim",
        str(width),
        "--run-dir",
        str(tmp_path / "run"),
        "--cache-dir",
        str(tmp_path / "c"),
    ]
    assert main.run_as_command(argv) == 2
    said = capsys.readouterr().err
    assert "GB are available" in said and "--hidden-dim" in said
    assert not list(tmp_path.iterdir())


def test_a_batch_too_large_for_memory_is_named():
    wide = need(hidden_dim=65536, batch_size=1 << 20, activation="topk")
    with pytest.raises(InputError, match="--micro-batches"):
        refuse_too_large(wide)


def test_available_memory_respects_control_groups(tmp_path):
    assert 0 < available() <= psutil.virtual_memory().total
    of, group = tmp_path / "cgroup", tmp_path / "sys" / "user" / "job"
    group.mkdir(parents=True)
    of.write_text("0::/user/job\n")

    def state(directory, limit, used, files):
        for name, text in (("max", limit), ("current", used), ("stat", f"anon 1\ninactive_file {files}")):
            (directory / f"memory.{name}").write_text(f"{text}\n")

    state(group, "max", 3000, 0)
    assert memory._left_in_control_groups(tmp_path / "sys", of) == []
    state(group.parent, 10_000, 9_000, 500)
    assert memory._left_in_control_groups(tmp_path / "sys", of) == [1500]

    old = tmp_path / "sys" / "memory"
    old.mkdir()
    of.write_text("4:memory:/elsewhere\n")
    for name, text in (("limit_in_bytes", 100), ("usage_in_bytes", 60)):
        (old / f"memory.{name}").write_text(f"{text}\n")
    (old / "memory.stat").write_text("total_inactive_file 10\n")
    assert memory._left_in_control_groups(tmp_path / "sys", of) == [50]
    assert memory._left_in_control_groups(tmp_path / "sys", tmp_path / "none") == []
