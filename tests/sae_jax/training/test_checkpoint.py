"""Damaged checkpoints are reported and kept, and restored states equal the saved ones."""

import asyncio
import errno
import os
import random
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from populations import prepare

from harvest.errors import InputError
from sae_jax.config import TrainConfig
from sae_jax.training.checkpoint import Checkpoints, silenced_leftovers, trouble_of_the_machine

D = 12
METRICS = {10: {"bytes": 7, "crc32": 1}, 20: {"bytes": 9, "crc32": 2}}


def states_at(step: int, **settings):
    """States whose arrays all differ between steps."""
    config = TrainConfig(**{"activation": "topk", "hidden_dim": 24, "k": 4, "batch_size": 8, **settings})
    _, start, _ = prepare(config, 100, np.random.default_rng(0).normal(size=(64, D)).astype(np.float32))
    return jax.tree.map(lambda leaf: np.asarray(leaf) + np.asarray(step).astype(leaf.dtype), start)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    checkpoints = Checkpoints(directory, 60)
    for step, metrics in METRICS.items():
        checkpoints.save(step, states_at(step), metrics, seconds=1.5 * step)
    checkpoints.close()
    return directory


def restored(directory: Path, said: list[str], start=None, asked=0):
    checkpoints = Checkpoints(directory, 60, asked)
    try:
        return checkpoints.restore(states_at(0) if start is None else start, said.append)
    finally:
        checkpoints.close()


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


def files_in(directory: Path) -> list[Path]:
    return sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())


def damage(path: Path, chance: random.Random) -> str:
    """Flip a bit or cut off the end of a file. Returns a description."""
    content = bytearray(path.read_bytes())
    if content and chance.random() < 0.75:
        bit = chance.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        return f"bit {bit}"
    path.write_bytes(content[: chance.randrange(max(1, len(content)))])
    return "cut"


def test_the_last_saved_state_is_restored(saved):
    step, states, metrics, seconds = restored(saved, said := [])
    assert seconds == 1.5 * step
    assert (step, metrics, said) == (20, METRICS[20], [])
    assert same(states, states_at(20))


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(saved, tmp_path):
    chance, went_back = random.Random(0), 0
    files = files_in(saved / "20")
    assert len(files) > 8
    for number, name in enumerate([*files, *chance.choices(files, k=16)]):
        copy = shutil.copytree(saved, tmp_path / str(number))
        how = damage(copy / "20" / name, chance)
        before = files_in(copy / "20")
        step, states, metrics, _ = restored(copy, said := [])
        assert same(states, states_at(step)) and metrics == METRICS[step], (name, how)
        if step == 10:
            went_back += 1
            assert said == [
                f"the checkpoint of step 20 is damaged and was renamed to {copy / 'damaged-20'}; the one "
                "before it is tried, if there is one"
            ]
            assert files_in(copy / "damaged-20") == before
        else:
            assert (step, said) == (20, [])
    assert went_back > 8


def test_several_damaged_checkpoints_of_one_step_are_all_kept(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    for _ in range(3):
        (copy / "20" / "states" / "_METADATA").write_text("")
        step = restored(copy, [])[0]
        assert step == 10
        checkpoints = Checkpoints(copy, 60)
        checkpoints.save(20, states_at(20), METRICS[20])
        checkpoints.close()
    assert restored(copy, [])[0] == 20
    assert {path.name for path in copy.iterdir()} == {"10", "20", "damaged-20", "damaged-20-2", "damaged-20-3"}


def test_if_all_checkpoints_are_damaged_they_are_kept_and_reported(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    for step in ("10", "20"):
        (copy / step / "states" / "_METADATA").write_text("")
    for _ in range(2):  # the next process must do the same
        with pytest.raises(InputError, match=r"all checkpoints in .* are damaged and were renamed to damaged-\*, "):
            restored(copy, [])
        assert {path.name for path in copy.iterdir()} == {"damaged-10", "damaged-20"}


@pytest.mark.parametrize(
    "changed, word",
    [
        ({"ema": 0.9}, r"\[0\].average.* is absent, but must be float32 of shape \[1, 24, 12\]"),
        ({"hidden_dim": 32}, r"is int32 of shape \[1, 24\], but must be int32 of shape \[1, 32\]"),
    ],
    ids=["one array more", "another shape"],
)
def test_a_checkpoint_with_other_arrays_is_explained_and_not_called_damaged(saved, tmp_path, changed, word):
    """The arrays differ, as after an upgrade of this program."""
    copy = shutil.copytree(saved, tmp_path / "copy")
    before = files_in(copy)
    with pytest.raises(InputError, match=f"20 was saved by another version of this program: .*{word}"):
        restored(copy, [], states_at(0, **changed))
    assert files_in(copy) == before


MACHINE = {
    "no memory": (MemoryError(), MemoryError, None),
    "no memory, by XLA": (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), MemoryError, "RESOURCE_EXHAUSTED"),
    "no memory, within another": (ValueError("cannot restore"), MemoryError, None),
    "a bad disk": (OSError(errno.EIO, "Input/output error"), OSError, "Input/output error"),
    "no access": (PermissionError(errno.EACCES, "Permission denied"), OSError, "Permission denied"),
    "by tensorstore": (ValueError("UNKNOWN: [os_error_code='24']"), OSError, "Too many open files"),
}
MACHINE["no memory, within another"][0].__cause__ = MemoryError()


@pytest.mark.parametrize("raised, kind, word", MACHINE.values(), ids=MACHINE)
def test_system_errors_are_not_called_damage(raised, kind, word, saved, tmp_path, monkeypatch):
    copy = shutil.copytree(saved, tmp_path / "copy")
    before = files_in(copy)

    def restore(self, step, args):
        raise raised

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    with pytest.raises(kind, match=word):
        restored(copy, [])
    assert files_in(copy) == before


@pytest.mark.parametrize("left", range(4))
def test_a_lack_of_file_descriptors_renames_no_checkpoint(left, saved, tmp_path):
    """The system's limit is really reached, at an earlier or later point in Orbax."""
    copy = shutil.copytree(saved, tmp_path / "copy")
    before, start = files_in(copy), states_at(0)
    checkpoints = Checkpoints(copy, 60)
    limits, used = resource.getrlimit(resource.RLIMIT_NOFILE), {int(name) for name in os.listdir("/proc/self/fd")}
    free = [number for number in range(len(used) + 20) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[left], limits[1]))
    try:
        outcome = checkpoints.restore(start, print)[0]
    except OSError as error:
        outcome = -error.errno
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        checkpoints.close()
    assert outcome in (20, -errno.EMFILE) and (outcome < 0 or left)
    assert files_in(copy) == before


@pytest.mark.parametrize("number, kind", [(errno.EMFILE, OSError), (errno.ENOMEM, MemoryError)])
def test_too_many_open_files_are_not_a_lack_of_memory(number, kind):
    """Both are RESOURCE_EXHAUSTED to tensorstore; the number of the system error tells them apart."""
    exhausted = "RESOURCE_EXHAUSTED: Error opening: {} [os_error_code='{}']"
    found = trouble_of_the_machine(ValueError(exhausted.format(os.strerror(number), number)), Path("there"))
    assert type(found) is kind and (kind is MemoryError or found.errno == number)


def test_a_checkpoint_of_another_step_or_run_is_refused_and_stays(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    newest = max(METRICS)
    os.rename(copy / str(newest), copy / "5000")
    with pytest.raises(InputError, match=f"5000 is a checkpoint of step {newest} that was copied there: remove it"):
        restored(copy, [])
    with pytest.raises(InputError, match="is a checkpoint of another run"):
        restored(saved, [], asked=7)
    assert (copy / "5000").is_dir() and (saved / str(newest)).is_dir()


class Leftover:
    """Something that fails while it is deleted, where nobody can catch the error."""

    def __init__(self, fail: Callable[[], object]):
        self.fail = fail

    def __del__(self):
        self.fail()


def test_reads_that_end_after_a_damaged_checkpoint_are_not_reported_but_other_defects_are(monkeypatch):
    reported, loop = [], asyncio.new_event_loop()
    loop.close()
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))
    with silenced_leftovers():
        Leftover(lambda: 1 / 0)
    Leftover(lambda: loop.call_soon_threadsafe(print))
    Leftover(lambda: {}["a defect"])
    assert reported == [KeyError]
