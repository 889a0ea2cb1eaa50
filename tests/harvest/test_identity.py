"""Rows are identified by their meaning: runs may be moved, folders may gain files, and the hub may be unreachable."""

import json
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, shared_cache, trained
from command_line import environment as variables
from finished_runs import finished_run
from hub_server import files_of, hub
from rows import make_store

import main
from analysis import training
from analysis.runs.finished import FinishedRun
from harvest import fingerprints, model_pass
from harvest.capture import one_at_a_time
from harvest.errors import InputError
from harvest.files import read_json
from harvest.identity import difference, distance, identity, matching_store, rounding
from harvest.model.language_model import LanguageModel
from harvest.request import HarvestRequest
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL, name_of, named_files, place_of
from harvest.store import ActivationStore
from harvest.store_writer import StoreWriter
from harvest.text.documents import documents
from sae_jax.config import TrainConfig
from sae_jax.run_directory import RunDirectory, default_name
from sae_jax.training.axes import Axes
from sae_jax.training.loop import environment, store_facts

SIZES = ("--n-samples", "60", "--seq-len", "10", "--epochs", "1", "--hidden-dim", "48", "--target-l0", "8")
TEXTS = list(islice(documents(str(BUNDLED_CORPUS)), 400))
JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return shared_cache(tmp_path_factory)


@pytest.fixture(autouse=True)
def for_this_process(monkeypatch, cache):
    for name, value in variables(cache).items():
        monkeypatch.setenv(name, value)


def home_of(who: Path) -> tuple[object, ...]:
    """The flags for a model and a text in the folder of a user."""
    if not who.exists():
        shutil.copytree(BUNDLED_MODEL, who / "model")
        (who / "texts.jsonl").write_text(JSONL)
    return ("--model-name", who / "model", "--dataset", who / "texts.jsonl")


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory) -> FinishedRun:
    """A run that was trained in Alice's folder, with her cache."""
    alice = tmp_path_factory.mktemp("alice") / "alice"
    return trained(alice.parent / "run", alice.parent / "cache", *home_of(alice), *SIZES)


@pytest.fixture
def moved(run, tmp_path, capsys) -> FinishedRun:
    """The run in Bob's folder, after he repeated the command with his paths of model and text."""
    path = Path(shutil.copytree(run.path, tmp_path / "moved"))
    argv = (*home_of(tmp_path / "bob"), *SIZES, "--ce-windows", "0", "--run-dir", path, "--cache-dir", tmp_path / "no")
    assert main.run_as_command([*map(str, argv)]) == 0
    assert "is finished" in capsys.readouterr().out and not (tmp_path / "no").exists()
    return FinishedRun.open(path)


def elsewhere(monkeypatch, apart: float) -> None:
    """Imitate another version of torch, whose activations differ by a share of each value."""
    monkeypatch.setattr(model_pass, "version", lambda name: "9.9.9")
    plain, rng = LanguageModel.activations, np.random.default_rng(0)

    def activations(self, tokens_WxT, sites):
        rows = plain(self, tokens_WxT, sites)
        return {site: (x * (1 + apart * rng.standard_normal(x.shape))).astype(x.dtype) for site, x in rows.items()}

    monkeypatch.setattr(LanguageModel, "activations", activations)


@pytest.mark.parametrize("apart, says", [(0.0, ""), (3e-5, "differ by rounding")])
def test_a_run_moved_to_another_machine_harvests_its_rows_again(moved, run, tmp_path, monkeypatch, apart, says):
    elsewhere(monkeypatch, apart)
    (site,), said = moved.request.sites, []
    store = moved.store(site, tmp_path / "cache", say=said.append)
    assert store.manifest["versions"]["torch"] == "9.9.9" != run.config["stores"][0]["versions"]["torch"]
    assert (said[-1].find(says) >= 0) if says else not any("rounding" in text for text in said)
    trained_on = identity(run.store(site, run.path.parent / "cache"))
    assert (identity(store)["rows_crc32"] == trained_on["rows_crc32"]) == (not apart)
    again: list[str] = []
    assert moved.store(site, tmp_path / "cache", say=again.append).directory == store.directory
    assert not any("harvest runs" in text for text in again)


def test_rows_that_really_differ_are_refused_with_the_difference(moved, tmp_path, monkeypatch):
    elsewhere(monkeypatch, 0.05)
    with pytest.raises(
        InputError, match=r"was trained on other activations than .*the rows by ([45]\.\d\d)% of the mean norm"
    ):
        moved.store(moved.request.sites[0], tmp_path / "cache")


@pytest.mark.parametrize("what", ["model", "text"])
def test_another_model_or_text_in_the_same_place_is_refused(moved, tmp_path, what):
    if what == "model":
        change_a_weight(tmp_path / "bob" / "model")
    else:
        (tmp_path / "bob" / "texts.jsonl").write_text(JSONL.replace(" the ", " a "))
    says = "the model's weights [0-9a-f]{32}, not" if what == "model" else "token windows [0-9a-f]{32}, not"
    with pytest.raises(InputError, match=f"was trained on other activations than .*{says}"):
        moved.store(moved.request.sites[0], tmp_path / "cache")
    if what == "model":
        with pytest.raises(InputError, match="was trained on a model with other weights"):
            _ = moved.language_model


def change_a_weight(model: Path) -> None:
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-2] ^= 1  # one bit of a weight
    (model / "model.safetensors").write_bytes(content)


PLACES = {
    "model": lambda gone, _: gone.model_location,
    "corpus": lambda gone, _: gone.corpus,
    "store": lambda gone, cache: gone.store(gone.request.sites[0], cache),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_moved_models_and_texts_are_named_with_the_fix(run, tmp_path, place):
    config = json.loads((run.path / "config.json").read_text())
    for part in ("model", "dataset"):
        config["stores"][0][part] |= {"location": str(tmp_path / part), "asked": part}
    gone = FinishedRun(run.path, config, run.results)
    with pytest.raises(InputError, match="is not at .* any more: .* again with the new path"):
        place(gone, tmp_path)


def test_paths_in_a_run_are_translated_to_this_machine(tmp_path, monkeypatch):
    old = {"asked": "bundled", "location": "/home/alice/sae-jax/model", "fell_back": False, "fingerprint": "0" * 32}
    for record in (old, old | {"asked": "gpt2-small", "fell_back": True}):
        assert (place_of("model", record), name_of("model", record)) == (str(BUNDLED_MODEL), "bundled")
    cached = "/home/alice/hub/datasets--owner--text/snapshots/607a30:part"
    hub_text = old | {"asked": "owner/text:part", "location": cached, "fingerprint": "owner/text:part@607a30"}
    assert place_of("dataset", hub_text) == name_of("dataset", hub_text) == "owner/text:part"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("one")
    local = old | {"asked": "texts.txt", "location": "/home/alice/texts.txt"}
    assert place_of("dataset", local) == str(tmp_path / "texts.txt")


# Which files of a model's folder and of a text matter.


def test_only_files_that_define_the_model_count(tmp_path):
    flags = home_of(tmp_path / "alice")
    request = HarvestRequest(model_name=str(flags[1]), dataset=str(flags[3]))
    model, before = tmp_path / "alice" / "model", named_files(request)
    (model / "NOTES.md").write_text("good")
    (model / "training_args.bin").write_bytes(b"0")
    os.utime(model / "model.safetensors", (1, 1))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"transformers_version": "9", "_name_or_path": "/x"}))
    assert named_files(request) == before
    elsewhere = Path(shutil.copytree(tmp_path / "alice", tmp_path / "bob"))
    (elsewhere / "texts.jsonl").rename(elsewhere / "mine.jsonl")
    moved = HarvestRequest(model_name=str(elsewhere / "model"), dataset=str(elsewhere / "mine.jsonl"))
    assert named_files(moved) == before
    asked = [{"harvest": r.to_json(), "train": {"activation": ["relu"]}, "files": before} for r in (request, moved)]
    assert default_name(asked[0]).split("-")[-1] == default_name(asked[1]).split("-")[-1]

    (model / "config.json").write_text(json.dumps(config | {"n_positions": 64}))
    assert named_files(request)["model_name"] != before["model_name"]
    change_a_weight(elsewhere / "model")
    assert named_files(moved)["model_name"] != before["model_name"]


def test_a_changed_weight_is_found_in_a_large_file_with_the_same_time(tmp_path):
    """Large files were once compared by their modification time only."""
    weights = tmp_path / "model.safetensors"
    for content in (b"0" * (65 << 20), b"1" * (65 << 20)):
        weights.write_bytes(content)
    at = weights.stat()
    now = fingerprints._content(weights)
    weights.write_bytes(b"2" + b"1" * ((65 << 20) - 1))
    fingerprints._bytes_hash.cache_clear()  # as in a new process
    os.utime(weights, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert fingerprints._content(weights) != now


# Identities of stores.


def rewritten(store: ActivationStore, directory: Path, change) -> ActivationStore:
    """A copy of a store with changed rows."""
    writer = StoreWriter(directory, {k: v for k, v in store.manifest.items() if k not in ("shards", "mean", "std")})
    for split in (store.train, store.held_out):
        rows_NxD = change(split.read(0, len(split)).astype(np.float64)).astype(split[0].dtype)
        writer.add_shard(split.name, 0, rows_NxD, split.windows, split.documents)
    return writer.finish()


@pytest.mark.parametrize("dtype, apart, same", [("float16", 3e-4, True), ("float32", 1e-6, True)])
@pytest.mark.parametrize("many", [1, 100])
def test_rounding_is_distinguished_from_other_rows(tmp_path, dtype, apart, same, many):
    store, rng = make_store(tmp_path / "a", dtype=dtype), np.random.default_rng(1)
    apart *= many if many > 1 else 1
    other = rewritten(store, tmp_path / "b", lambda x: x * (1 + apart * rng.standard_normal(x.shape)))
    here, there = identity(store), identity(other)
    if many == 1:
        assert not difference(here, there) and "rounding" in rounding(here, there)
    elif dtype == "float16":
        assert "the rows by" in difference(here, there)
        lengths_N = np.linalg.norm(store.train[np.arange(len(store.train))].astype(np.float64), axis=1)
        assert distance(here, there)["rows"] == pytest.approx(apart, rel=0.5)
        assert here["sums"]["length"] == pytest.approx(lengths_N.mean(), rel=1e-3)


def test_shifted_and_scaled_rows_are_different(tmp_path):
    store = make_store(tmp_path / "a", dtype="float32")
    for number, change in enumerate((lambda x: x + 0.1, lambda x: x * 1.02)):
        other = rewritten(store, tmp_path / f"b{number}", change)
        assert "% of the mean norm of the rows" in difference(identity(store), identity(other))


def test_a_copied_store_is_the_same_and_is_found(tmp_path):
    store = make_store(tmp_path / "activations" / "a")
    copy = rewritten(store, tmp_path / "b", lambda x: x)
    assert not difference(identity(store), identity(copy))
    shutil.copytree(tmp_path / "activations", tmp_path / "copy" / "activations")
    assert matching_store(store_facts(store), tmp_path / "copy")
    assert matching_store(store_facts(store), tmp_path / "nothing") is None


def test_a_run_is_resumed_on_rows_that_differ_by_rounding_and_says_so(tmp_path):
    store, rng = make_store(tmp_path / "a"), np.random.default_rng(0)
    near = rewritten(store, tmp_path / "b", lambda x: x * (1 + 3e-4 * rng.standard_normal(x.shape)))
    far = rewritten(store, tmp_path / "c", lambda x: x * 1.1)
    path = finished_run(tmp_path / "run", TrainConfig(), [store]).path
    run, here = RunDirectory(path, read_json(path / "config.json", "")["asked"]), environment(Axes())
    assert run.begin([store_facts(store)], here, {}, resume=True) == ""
    said = run.begin([store_facts(near)], here | {"jax": "2"}, {}, resume=True)
    assert f"jax {here['jax']}, not 2" in said and "the rows differ by rounding" in said
    with pytest.raises(
        InputError, match="another activation store .*the rows by .*% of the mean norm of the rows.*--force"
    ):
        run.begin([store_facts(far)], here, {}, resume=True)


# Locks.


def test_the_lock_file_is_not_deleted(tmp_path):
    lock = tmp_path / "store.lock"
    with pytest.raises(InputError), one_at_a_time(tmp_path / "store", print):
        before = lock.stat().st_ino
        raise InputError("no text")
    assert lock.stat().st_ino == before


def test_results_are_checked_again_after_locking(run, tmp_path, monkeypatch, capsys):
    """If another process finishes the run while this one harvests, its results are shown, and nothing is trained."""
    path, plain = tmp_path / "run", training.harvest

    def meanwhile(*arguments, **options):
        stores = plain(*arguments, **options)
        shutil.copytree(run.path, path)
        return stores

    monkeypatch.setattr(training, "harvest", meanwhile)
    argv = (*home_of(run.path.parent / "alice"), *SIZES, "--ce-windows", "0", "--run-dir", path)
    assert main.run_as_command([*map(str, (*argv, "--cache-dir", run.path.parent / "cache"))]) == 0
    assert "is finished" in capsys.readouterr().out
    assert (path / "results.json").read_bytes() == (run.path / "results.json").read_bytes()


def test_the_lock_of_a_run_directory_is_reentrant(tmp_path):
    run, other = (RunDirectory(tmp_path / "run", {"train": {}}) for _ in range(2))
    with run.held():
        with run.held():
            pass
        with pytest.raises(InputError, match="another process is training in it"), other.held():
            pass
    with other.held():
        pass


# Without a hub.

OFFLINE = """
import json, sys, shutil
from pathlib import Path
import main
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError

path, cache = Path(sys.argv[1]), Path(sys.argv[2])
argv = ["--model-name", "some-org/tiny", "--dataset", "some-org/texts", *sys.argv[3:], "--cache-dir", str(cache)]
def train(name, *more):
    return main.run_as_command([*argv, "--run-dir", str(path / name), *more])
assert train("run", "--ce-windows", "0") == 0
print("harvested", flush=True)
sys.stdin.readline()  # the hub is closed
(path / "run" / "results.json").unlink()
assert train("run", "--ce-windows", "8", "--resume") == 0
run = FinishedRun.open(path / "run")
assert run.results["loss_recovered"]["windows"]
run.store(run.request.sites[0], cache)
assert main.run_as_command(["evaluate", str(path / "run"), "--ce-windows", "0", "--cache-dir", str(cache)]) == 0
assert train("new", "--ce-windows", "0") == 0
shutil.rmtree(cache / "activations")
assert train("third", "--ce-windows", "0") == 2
"""


def test_an_unreachable_hub_does_not_matter_if_the_rows_are_cached(tmp_path, cache):
    models, texts = {"some-org/tiny": files_of(BUNDLED_MODEL)}, {"some-org/texts": {"train.jsonl": JSONL.encode()}}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    with hub(models, texts) as url:
        places = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", OFFLINE, tmp_path, tmp_path / "cache", *SIZES],
            env=kept | variables(cache) | places | {"HF_HUB_OFFLINE": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while "harvested" not in (line := process.stdout.readline()):
            assert line, process.communicate()
    out, err = process.communicate("go\n", timeout=300)
    assert process.returncode == 0, out + err
    assert "the hub cannot be reached: activations harvested before are used" in out
    assert "--dataset some-org/texts: the hub cannot be reached" in err.splitlines()[-1]


# Runs of other users.

READ_ONLY = """
import sys, main
cache = ["--cache-dir", sys.argv[3]]
run, member, other = sys.argv[1], sys.argv[2], sys.argv[4]
for argv in (["show", run], ["show", other], ["frontier", run], ["report", run, "--to", "sent.html", *cache]) + ALL:
    status = main.run_as_command(argv)
    print(f"STATUS {argv[0]} {status}", flush=True)
    assert status == 0, argv
print("STATUS report", main.run_as_command(["report", run, *cache]))
"""
ALL = """(
    ["evaluate", run, "--ce-windows", "8", *cache],
    ["attribute", run, "--prompt", "The rain fell on", "--target", " the"],
    ["steer", run, "--feature", "0", *cache],
    ["find-feature", run, "sea", *cache],
    ["saebench", run, "--metrics", "probing", "--documents", "1500", "--k", "1"],
    ["study", run, "--documents", "1500", *cache],
    ["export", run, "--to", "exported"],
    ["export", run, "--to", "pages", "--neuronpedia", *cache],
)"""


@pytest.mark.parametrize("all_commands", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_cannot_be_written_to_is_read(run, cache, tmp_path, all_commands):
    """The run is on a read-only mount, which root cannot write to either. Its rows are harvested into another cache."""
    runs, before = tmp_path / "runs", files_of(run.path)
    shutil.copytree(run.path, runs / "run")
    shutil.copytree(run.path, runs / "interrupted")
    (runs / "interrupted" / "results.json").unlink()
    mount = ("unshare", "--mount", "--map-root-user", "sh", "-c")
    mount += ('mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"', runs)
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    script = READ_ONLY.replace("ALL", ALL if all_commands else "()")
    (member,) = run.members
    argv = (sys.executable, "-c", script, runs / "run", member, tmp_path / "cache", runs / "interrupted")
    places = variables(cache) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*mount, *argv], capture_output=True, text=True, cwd=tmp_path, env=os.environ | places)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "cannot be written to: the results are not saved" in done.stdout
    assert "STATUS report 2" in done.stdout and "give another file by --to" in done.stderr
    assert "was interrupted" in done.stdout and (tmp_path / "sent.html").stat().st_size > 10_000
    assert files_of(runs / "run") == before
