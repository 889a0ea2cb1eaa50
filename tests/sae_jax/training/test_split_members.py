"""A population trains the same on every mesh: in one process with several virtual devices, and in several processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clusters import free_port
from command_line import ROOT

from sae_jax.config import SPARSITY_CONTROLS

SCRIPT = """
import sys
import jax, numpy as np
from populations import placed
from rows import sparse_rows
from harvest.request import Site
from sae_jax.config import TrainConfig
from sae_jax.training import processes
from sae_jax.training.axes import axes_asked
from sae_jax.training.programs import make_train_block

to, kinds, widths, meshes, side_by_side, *cluster = sys.argv[1:]
if cluster:
    jax.distributed.initialize(cluster[0], int(cluster[1]), int(cluster[2]))
D, B, S, BLOCKS = 24, 32, 10, 5
rng = np.random.default_rng(0)
rows = sparse_rows(rng, rng.standard_normal((64, D)), BLOCKS * S * B).astype(np.float32)
rows = (rows - rows.mean(0)) / rows.std(0)
sites = (Site(0, "resid_pre"), Site(1, "resid_pre"))
at_sites = np.stack([rows, np.roll(rows, 7, axis=1)])
config = TrainConfig(
    tuple(kinds.split(",")), tuple(map(int, widths.split(","))), k=6, target_l0=6.0, batch_size=B, warmup=0.0
)
for mesh in meshes.split(";"):
    placement, states, hypers, groups = placed(config, BLOCKS * S, rows[:512], axes_asked(mesh), sites)
    train_block = make_train_block(groups, int(side_by_side), placement)
    given, losses = [placement.everywhere(array) for array in (at_sites[:, :256], np.array(S, np.int32))], []
    for raw_LxSxBxD in at_sites.reshape(2, BLOCKS, S, B, D).swapaxes(0, 1):
        states, metrics = train_block(states, hypers, placement.rows(raw_LxSxBxD), *given)
        losses.append(np.concatenate([of_group["loss"] for of_group in placement.gather(metrics)]))
    leaves = jax.tree.leaves(placement.gather(states))
    if processes.is_first():
        fires = np.concatenate([state.ravel() for state in leaves if state.dtype == np.int32])
        bits = np.concatenate([leaf.ravel().view(np.int32) for leaf in leaves])
        np.savez(f"{to}/{mesh}.npz", loss_PxS=np.concatenate(losses, 1), fires=fires, bits=bits)
processes.part()
"""
ALONE = "members=1"
KINDS = ",".join(SPARSITY_CONTROLS)


def train(to: Path, kinds: str, widths: str, meshes: list[str], devices: int, processes: int = 1, side_by_side=1):
    """The losses, counts and bits of the states after training on each mesh, by its name."""
    to.mkdir(exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    started = []
    for number in range(processes):
        cluster = [address, str(processes), str(number)] if processes > 1 else []
        asked = [str(to), kinds, widths, ";".join(meshes), str(side_by_side), *cluster]
        environment = os.environ | {
            "JAX_NUM_CPU_DEVICES": str(devices // processes),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        }
        started.append(
            subprocess.Popen([sys.executable, "-c", SCRIPT, *asked], env=environment, stderr=subprocess.PIPE, text=True)
        )
    errors = [process.communicate(timeout=1500)[1] for process in started]
    assert not any(process.returncode for process in started), "\n".join(errors)
    return {mesh: dict(np.load(to / f"{mesh}.npz")) for mesh in meshes}


def assert_alike(one: dict, other: dict) -> None:
    np.testing.assert_allclose(one["loss_PxS"], other["loss_PxS"], rtol=1e-5)
    np.testing.assert_array_equal(one["fires"], other["fires"])


def test_members_that_are_split_train_as_in_one_piece(tmp_path):
    """Two kinds, the k largest values of which are found by sorting in one piece and by counting in several."""
    meshes = [ALONE, "data=2", "features=2", "members=2,data=2,features=1"]
    learned = train(tmp_path, "topk,batch_topk", "32", meshes, devices=4)
    for mesh in meshes[1:]:
        assert_alike(learned[mesh], learned[ALONE])


def test_two_processes_train_as_one(tmp_path):
    meshes = ["members=2", "features=2"]
    one = train(tmp_path / "one", "topk", "32,48", [ALONE], devices=1)
    two = train(tmp_path / "two", "topk", "32,48", meshes, devices=2, processes=2)
    np.testing.assert_array_equal(two["members=2"]["bits"], one[ALONE]["bits"])
    assert_alike(two["features=2"], one[ALONE])


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [1, 8])
def test_every_kind_trains_the_same_on_every_mesh(tmp_path, side_by_side):
    meshes = [ALONE, "members=4", "data=4", "features=4", "members=2,data=2", "members=2,data=2,features=2"]
    learned = train(tmp_path / "first", KINDS, "48,64", meshes, devices=8, side_by_side=side_by_side)
    for mesh in meshes[1:]:
        assert_alike(learned[mesh], learned[ALONE])
    again = train(tmp_path / "again", KINDS, "48,64", meshes[-1:], devices=8, side_by_side=side_by_side)
    np.testing.assert_array_equal(again[meshes[-1]]["bits"], learned[meshes[-1]]["bits"])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_kind_trains_the_same_in_several_processes(tmp_path, processes):
    meshes = ["members=4", "data=4", "features=4", "members=2,features=2"]
    one = train(tmp_path / "one", KINDS, "48", [ALONE], devices=1)
    several = train(tmp_path / "several", KINDS, "48", meshes, devices=4, processes=processes)
    for mesh in meshes:
        assert_alike(several[mesh], one[ALONE])
