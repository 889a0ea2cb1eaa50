"""Files written and read by SAELens and dictionary_learning, whose code runs in a separate environment."""

import json
import os
import subprocess

import numpy as np
import pytest
from command_line import BUNDLED, ROOT, shared_cache, typed
from peers.peers_formats import OLDER, VARIANTS
from safetensors.numpy import load_file

from analysis.cli.export import run as export
from harvest.store import ActivationStore
from sae_jax.calibration import metric_windows
from sae_jax.config import SPARSITY_CONTROLS
from sae_jax.formats import load_dictionary, save_dictionary

PEERS = os.environ.get("SAE_PEERS_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PEERS is None, reason="SAE_PEERS_PYTHON: an interpreter with sae-lens and dictionary-learning"),
]


def peers(*arguments: object) -> None:
    command = [str(PEERS), ROOT / "tests" / "peers" / "peers_formats.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def test_dictionaries_of_saelens_agree_and_are_written_again_bit_for_bit(tmp_path):
    peers("saelens", tmp_path)
    x = (3 * np.random.default_rng(0).standard_normal((200, 24)) + 1).astype(np.float32)
    np.save(tmp_path / "rows.npy", x)
    names = [*VARIANTS, *OLDER]
    for name in names:
        save_dictionary(load_dictionary(tmp_path / name), tmp_path / "saved" / name)
    places = [tmp_path / name for name in names] + [tmp_path / "saved" / name for name in names]
    peers("outputs", tmp_path / "rows.npy", *places)
    for name in names:
        dictionary, theirs = load_dictionary(tmp_path / name), np.load(tmp_path / name / "outputs.npz")
        assert dictionary.format == ("saelens before 6" if name in OLDER else "saelens")
        assert (dictionary.hook_name, dictionary.model_name) == ("blocks.1.hook_resid_pre", "gpt2")
        errors = [difference(dictionary.sae.encode(x), theirs["features"])]
        errors.append(difference(dictionary.sae(x), theirs["reconstruction"]))
        print(name, errors)
        assert max(errors) < 1e-5, name
        files = [load_file(d / name / "sae_weights.safetensors") for d in (tmp_path, tmp_path / "saved")]
        before, after = ({part: of.tobytes() for part, of in tensors.items()} for tensors in files)
        assert before == after, name
        again = np.load(tmp_path / "saved" / name / "outputs.npz")
        assert all((again[part] == theirs[part]).all() for part in theirs), name


def test_dictionaries_of_dictionary_learning_agree_here_and_in_saelens(tmp_path):
    peers("dictionary_learning", tmp_path)
    x, made = np.load(tmp_path / "rows.npy"), sorted(tmp_path.glob("trainer_*"))
    saved = [tmp_path / "saved" / directory.name for directory in made]
    for directory, to in zip(made, saved, strict=True):
        dictionary, theirs = load_dictionary(directory), np.load(directory / "outputs.npz")
        assert dictionary.format == "dictionary_learning" and dictionary.model_name == "some/model"
        errors = [difference(dictionary.sae.encode(x), theirs["features"])]
        errors.append(difference(dictionary.sae(x), theirs["reconstruction"]))
        print(directory.name, dictionary.cfg["architecture"], (theirs["features"] != 0).sum(1).mean(), errors)
        assert max(errors) < 1e-5, directory
        save_dictionary(dictionary, to)
    peers("outputs", tmp_path / "rows.npy", *saved)
    for directory, to in zip(made, saved, strict=True):
        theirs, through_us = np.load(directory / "outputs.npz"), np.load(to / "outputs.npz")
        assert difference(through_us["reconstruction"], theirs["reconstruction"]) < 1e-5, directory
    assert load_dictionary(made[0]).hook_name == "blocks.3.hook_resid_post"


def test_saelens_measures_every_exported_kind_as_we_do(tmp_path, tmp_path_factory):
    cache, run = shared_cache(tmp_path_factory), tmp_path / "run"
    sizes = ("--hidden-dim", 96, "--k", 8, "--target-l0", 8, "--epochs", 3, "--layer", 1)
    text = (*BUNDLED, "--n-samples", 300, "--seq-len", 12, "--held-out", 0.3)
    done = typed(*text, "--activation", *SPARSITY_CONTROLS, *sizes, "--run-dir", run, cache=cache)
    assert done.returncode == 0, done.stderr
    members = json.loads((run / "results.json").read_text())["members"]
    name = json.loads((run / "config.json").read_text())["stores"][0]["directory"]
    split = ActivationStore(cache / "activations" / name).held_out
    x = split[split.window_rows(metric_windows(split))].astype(np.float32)
    np.save(tmp_path / "rows.npy", x)
    for member in members:
        export([str(run), "--member", member["id"], "--to", str(tmp_path / member["id"])])
    peers("outputs", tmp_path / "rows.npy", *(tmp_path / m["id"] for m in members))
    variance = x.var(0, dtype=np.float64).sum()
    for member in members:
        theirs = np.load(tmp_path / member["id"] / "outputs.npz")
        mse = np.square(x - theirs["reconstruction"].astype(np.float64)).sum(1).mean()
        figures = {"explained_variance": 1 - mse / variance, "l0": (theirs["features"] != 0).sum(1).mean()}
        ours = {name: member["metrics"][name] for name in figures}
        print(member["activation"], {name: (ours[name], figures[name]) for name in figures})
        assert ours == pytest.approx(figures, abs=1e-3), member["id"]
        densities = np.log10((theirs["features"] != 0).mean(0) + 1e-10)
        np.testing.assert_allclose(load_dictionary(tmp_path / member["id"]).log_sparsity_F, densities, atol=0.01)
    assert (tmp_path / members[0]["id"] / "README.md").read_text().startswith("---\nlibrary_name: saelens\n")
