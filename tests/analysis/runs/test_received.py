"""Run directories from others: their content is checked on opening, and nothing outside of them is written."""

from dataclasses import asdict

import numpy as np
import pytest
from finished_runs import finished_run
from populations import member_of
from robustness.received import (
    IDS,
    VALUES,
    change_arrays,
    changed,
    id_fault,
    link_fault,
    places,
    read_record,
    write_record,
)
from rows import make_store

import main
from analysis.comparison import shared_features
from analysis.comparison.clusters import Clusters, read_clusters, write_clusters
from analysis.comparison.matching import Decoder
from analysis.runs.finished import FinishedRun
from analysis.runs.live import LiveRun
from harvest.errors import InputError
from harvest.files import write_arrays
from sae_jax.config import TrainConfig
from sae_jax.run_directory import RunDirectory
from sae_jax.training.snapshots import Snapshot, read_snapshots


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), windows=40, shards=1)


@pytest.fixture
def run(tmp_path, store):
    """The records of a run with two members as training writes them, beside a folder that is outside of the run."""
    run = finished_run(tmp_path / "run", TrainConfig(activation=("relu", "topk")), [store]).path
    members = [member["id"] for member in read_record(run / "results.json")["members"]]
    for name in (*(f"members/{member}" for member in members), "figures", "analysis/features", "snapshots/0"):
        (run / name).mkdir(parents=True)
    RunDirectory(run, {}).append_metrics([{"step": 4, "member": members[0], "loss": 2.0}])
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("whole\n")
    return run


def test_an_unchanged_run_is_opened(run):
    assert FinishedRun.open(run).config["total_steps"] == 100
    assert LiveRun.open(run).progress().step == 4


@pytest.mark.parametrize("name", IDS, ids=repr)
def test_an_id_is_the_name_of_a_file(run, name, capsys):
    config = read_record(run / "config.json")
    id_fault(name)(run)
    hostile = read_record(run / "config.json")
    for command in (["report", str(run)], ["show", str(run)]):
        assert main.run_as_command(command) == 2
        assert "config.json is malformed at l0_asked." in capsys.readouterr().err
    write_record(run / "config.json", config)
    assert main.run_as_command(["show", str(run)]) == 2
    assert "results.json is malformed at members.0.id" in capsys.readouterr().err
    write_record(run / "config.json", hostile)
    (run / "results.json").unlink()
    assert main.run_as_command(["show", str(run)]) == 2
    assert "config.json is malformed at l0_asked" in capsys.readouterr().err
    assert [path.name for path in run.with_name("outside").iterdir() if path.is_file()] == ["victim"]


CONTRADICTIONS = {
    "lr": (lambda results: results["members"][0].update(lr=-1.0), "do not match its id"),
    "activation": (lambda results: results["members"][0].update(activation="x"), "do not match its id"),
    "documents": (lambda results: results.update(loss_recovered={"windows_asked": 1, "windows": 1}), "loss_recovered"),
    "variance": (lambda results: results["members"][0]["metrics"].update(explained_variance=1e308), "variance"),
}


@pytest.mark.parametrize("change, message", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_impossible_figures_are_reported(run, change, message):
    results = read_record(run / "results.json")
    change(results)
    write_record(run / "results.json", results)
    with pytest.raises(InputError, match=message):
        FinishedRun.open(run)


@pytest.mark.parametrize("place", ["figures", "analysis", "analysis/features", "members", "members/*", ".lock"])
@pytest.mark.parametrize("opened", [FinishedRun, LiveRun])
def test_a_link_that_leads_out_of_a_run_is_reported(run, place, opened):
    link_fault(place)(run)
    with pytest.raises(InputError, match="is a link to .*outside"):
        opened.open(run)


def test_files_that_are_links_are_read_as_in_the_cache_of_a_hub(run):
    for name in ("config.json", "metrics.jsonl"):
        (run / name).rename(run.with_name(name))
        (run / name).symlink_to(run.with_name(name))
    FinishedRun.open(run)
    with pytest.raises(InputError, match="is a link to"), RunDirectory(run, LiveRun.open(run).config["asked"]).held():
        pass  # training would append to this file


WRONG = [
    *(("config.json", place) for place in ("asked", "asked.harvest.layer", "asked.train.members", "asked.train.lr")),
    *(("config.json", place) for place in ("stores", "stores.0.directory", "stores.0.model", "environment.device")),
    *(("config.json", place) for place in ("total_steps", "l0_asked", "snapshots", "asked.harvest.hook")),
    *(("results.json", place) for place in ("members", "members.0.id", "members.0.lr", "members.0.hook")),
    *(
        ("results.json", place)
        for place in ("members.0.sparsity_control", "members.0.metrics.l0", "timing.steps", "model")
    ),
    *(("results.json", place) for place in ("members.0.metrics.explained_variance", "members.0.seed", "backend")),
]


@pytest.mark.parametrize("file, key", WRONG, ids=lambda value: str(value))
def test_missing_and_mistyped_keys_are_reported_with_the_file(run, file, key):
    """All checksums are correct, because an attacker can write them too."""
    record = read_record(run / file)
    place = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    assert place in set(places(record))
    for what in ("missing", "object", "NaN", "nested", "NUL"):
        write_record(run / file, changed(record, place, VALUES[what]))
        with pytest.raises(InputError, match=f"{file} is (malformed|damaged)"):
            FinishedRun.open(run)


def test_a_member_without_a_store_is_reported(run):
    record = read_record(run / "results.json")
    write_record(run / "results.json", changed(record, ("members", 0, "layer"), 3))
    with pytest.raises(InputError, match="lacks the store of blocks.3.hook_resid_pre"):
        FinishedRun.open(run)


@pytest.mark.parametrize("line", [{"step": "x"}, {"step": 4}, {"step": 4, "member": "../x", "loss": 1.0}, {}])
def test_a_malformed_line_of_metrics_is_reported(run, line):
    RunDirectory(run, {}).append_metrics([line])
    with pytest.raises(InputError, match="metrics.jsonl"):
        LiveRun.open(run).progress()


def broken(folder, name, change):
    """Apply a change to the record or arrays of a file, and update the checksum."""
    if name.endswith(".json"):
        write_record(folder / name, change(read_record(folder / name)))
    else:
        change_arrays(folder / name, change)


COMPARISONS = [
    ("comparison.json", lambda record: record | {"labels": []}),
    ("comparison.json", lambda record: record | {"shared_MxM": [[1.0]]}),
    ("comparison.json", lambda record: record | {"groups": [{}]}),
    ("comparison.json", lambda record: record | {"other_seeds": {"a": 0}}),
    ("comparison.json", lambda record: record | {"rows": "many"}),
    ("comparison.npz", lambda arrays: {}),
    ("comparison.npz", lambda arrays: arrays | {"a/partner": np.zeros(3)}),
    ("comparison.npz", lambda arrays: arrays | {"a/cosine": np.full((8, 2), "x")}),
    ("comparison.npz", lambda arrays: arrays | {"a/what": np.zeros((8, 2))}),
]


@pytest.mark.parametrize("file, change", COMPARISONS)
def test_a_malformed_comparison_is_named(tmp_path, file, change):
    rng = np.random.default_rng(0)
    decoders = {
        name: Decoder(asdict(member_of(seed=seed)), rng.standard_normal((8, 4)), np.ones(8, bool))
        for seed, name in enumerate("ab")
    }
    found = shared_features.compute_shared_features(decoders)
    shared_features.write_shared_features(found, tmp_path)
    assert shared_features.read_shared_features(tmp_path, ["a", "b"]).shared_MxM.tolist() == found.shared_MxM.tolist()
    broken(tmp_path, file, change)
    with pytest.raises(InputError, match=f"{file} is malformed"):
        shared_features.read_shared_features(tmp_path, ["a", "b"])


MAPS = [
    ("clusters-a.json", lambda record: record | {"method": "![x](http://evil.test)"}),
    ("clusters-a.json", lambda record: record | {"names": ["one too many"], "sizes": []}),
    ("clusters-a.json", lambda record: record | {"noise": 7.0}),
    ("clusters-a.npz", lambda arrays: arrays | {"label_F": np.full(6, 9)}),
    ("clusters-a.npz", lambda arrays: arrays | {"xy_Fx2": np.zeros((6, 3))}),
    ("clusters-a.npz", lambda arrays: arrays | {"pca_Fx2": np.zeros((5, 2))}),
]


@pytest.mark.parametrize("file, change", MAPS)
def test_a_malformed_map_is_named(tmp_path, file, change):
    xy_Fx2, promoted = np.zeros((6, 2), np.float32), [["a"]] * 6
    clusters = Clusters(xy_Fx2, xy_Fx2, np.full(6, -1), ("a",) * 6, (), (), (0.5, 0.5), "PCA", 1.0, 0.1, 0.1, 6, 0)
    write_clusters(clusters, tmp_path, "a")
    assert read_clusters(tmp_path, "a", promoted) is not None
    broken(tmp_path, file, change)
    with pytest.raises(InputError, match=f"{file} is malformed"):
        read_clusters(tmp_path, "a", promoted)


@pytest.mark.parametrize("wrong", [{"norm": np.ones(5)}, {"direction": np.zeros(6)}], ids=["norm", "direction"])
def test_malformed_snapshots_are_named(tmp_path, wrong):
    folder = tmp_path / "snapshots" / "000000000"
    folder.mkdir(parents=True)
    whole = Snapshot(np.zeros((6, 3), np.float16), np.ones(6, np.float32), np.zeros(6, np.float32))
    write_arrays(folder / "a.npz", whole._asdict())
    assert read_snapshots(tmp_path, "a")[0].norm.shape == (6,)
    write_arrays(folder / "a.npz", whole._asdict() | wrong)
    with pytest.raises(InputError, match="a.npz is malformed"):
        read_snapshots(tmp_path, "a")
