"""Runs in Python: training, loading, splicing, features, and figures for matplotlib."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from command_line import ROOT, THREE_KINDS, shared_cache, trained

import analysis
import sae_jax
from analysis.quality.loss_recovered import loss_recovered
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from sae_jax.formats import load_dictionary

TOPK = "topk-f48-k8-lr1e-3-s0"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory) -> FinishedRun:
    return trained(tmp_path_factory.mktemp("python") / "run", cache, *THREE_KINDS, "--epochs", "2")


@pytest.mark.parametrize("package", ["sae_jax", "analysis"])
def test_importing_it_loads_nothing_heavy(package):
    code = f"import sys, {package}; dir({package}); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "jax", "numpy", "flax", "altair"} & set(modules.split())
    code = f"import {package}; {package}.train_populaton"
    failed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "no attribute 'train_populaton'. Did you mean: 'train_population'?" in failed.stderr


@pytest.mark.parametrize("package", [sae_jax, analysis])
def test_a_package_lists_its_names(package):
    assert dir(package) == sorted(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert sae_jax.__version__ == importlib.metadata.version("sae-jax")
    assert sae_jax.train_population is analysis.train_population


SETTINGS = {"model_name": "bundled", "dataset": "bundled", "n_samples": 100, "seq_len": 10, "epochs": 2}
SETTINGS |= {"activation": ["relu", "jump_relu", "topk"], "hidden_dim": 48, "target_l0": 8, "k": 8, "block_steps": 4}
SETTINGS |= {"dead_threshold": 0.1, "ce_windows": 0}  # those of THREE_KINDS


def test_training_in_python_is_that_of_the_command_line(run, cache, tmp_path, capsys):
    place = {"run_dir": str(tmp_path / "run"), "cache_dir": str(cache)}
    trained_here = sae_jax.train_population(**SETTINGS, **place)
    out = capsys.readouterr().out
    assert re.search(r"\ntrain  step [\d,/]+  100%", out) and "EXPERIMENT RESULTS" not in out
    assert len(trained_here) == 3 and list(trained_here) == list(run.members) and TOPK in trained_here
    for name in run.members:
        weights = [r.path / "members" / name / "sae_weights.safetensors" for r in (run, trained_here)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert trained_here[TOPK].metrics == run.members[TOPK]["metrics"]
    assert "EXPERIMENT RESULTS" in repr(trained_here)
    with pytest.raises(InputError, match="^member nothing is not in"):
        trained_here["nothing"]
    for number in (0, -1, slice(1)):
        with pytest.raises(
            InputError, match=rf"a member is chosen by its id, not by .*: give best, or one of .*{TOPK}"
        ):
            trained_here[number]
    finished = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    assert list(sae_jax.train_population(**SETTINGS, **place, quiet=True)) == list(run.members)
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == finished  # not trained again
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hiden_dim": 48}, "train_population has no setting hiden_dim: did you mean hidden_dim"),
        ({"d_sae": 48}, "train_population has no setting d_sae: did you mean hidden_dim"),
        ({"prepend_bos": True}, "no setting prepend_bos: did you mean bos"),
        ({"fit_decoder": "no"}, "^fit_decoder 'no': must be True or False"),
        ({"lr": "1e-3"}, "^lr '1e-3': must be a positive number"),
        ({"colour": 1}, "no setting colour: give one of model_name, .*, hook, .*, run_dir, "),
        ({"preset": "res-jb"}, "only the command line .`--preset`.: `python main.py --preset NAME --dry-run` shows"),
        ({"k": 8}, "^k has no effect on activation relu: give target_l0, or leave it out"),
        ({"resume": True, "force": True}, "^resume continues the run, force starts over: give only one"),
        ({"batch_size": 10**6}, "^batch_size 1000000 is larger than the 171,000 training rows"),
        ({"activation": ["relu", "tokp"]}, "^activation tokp: must be one of"),
    ],
)
def test_settings_that_cannot_be_fulfilled_are_refused(settings, reason):
    with pytest.raises(InputError, match=reason):
        sae_jax.train_population(**settings)


def test_a_spliced_member_has_the_cross_entropy_of_loss_recovered(run, cache):
    store, sae, windows_W = run.store(run.site(TOPK), cache), sae_jax.load(run.path, member=TOPK), np.arange(8)
    assert sae.first_position == 1 and sae_jax.load(run.path / "members" / TOPK).first_position == 1
    measured = loss_recovered(run.language_model, store, {TOPK: sae.dictionary.sae}, windows_W)[TOPK]["metrics"]
    tokens = torch.from_numpy(store.held_out.windows[windows_W].astype(np.int64))
    for error_term, expected in ((False, measured["ce_sae"]), (True, measured["ce_clean"])):
        with torch.no_grad(), sae_jax.spliced(run.language_model, sae, error_term=error_term):
            logits_WxTxV = run.language_model.bridge(tokens, return_type="logits")
        logp_WxPx1 = logits_WxTxV[:, 1:-1].log_softmax(-1).gather(-1, tokens[:, 2:, None])
        assert -logp_WxPx1.mean().item() == pytest.approx(expected, rel=1e-4)
    assert measured["ce_sae"] > measured["ce_clean"] + 0.1


def test_a_language_model_describes_itself(run):
    assert repr(run.language_model).endswith(": 4 layers, 256 wide, 4,096 tokens, in float32 on cpu)")


def test_a_member_encodes_and_decodes_rows_of_any_sort(run, cache):
    sae = sae_jax.load(run.path, member=TOPK)
    x_BxD = run.store(run.site(TOPK), str(cache)).held_out.read(0, 12)
    expected_BxF = np.asarray(run.dictionary(TOPK).sae.encode(jnp.asarray(x_BxD, jnp.float32)))
    as_float32 = x_BxD.astype(np.float32)
    for rows in (x_BxD, as_float32, as_float32.astype(np.float64), jnp.asarray(x_BxD), torch.from_numpy(as_float32)):
        np.testing.assert_allclose(sae.encode(rows), expected_BxF, rtol=1e-5, atol=1e-5)
    assert (expected_BxF != 0).sum(1).max() == 8
    in_batches = sae.encode(x_BxD.reshape(3, 4, -1))
    np.testing.assert_allclose(in_batches.reshape(12, -1), expected_BxF, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae.encode(x_BxD[0]), expected_BxF[0], rtol=1e-5, atol=1e-5)
    f_BxF = sae.encode(x_BxD)
    by_hand = np.asarray(f_BxF) @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec)
    np.testing.assert_allclose(sae.decode(f_BxF), by_hand, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(sae(x_BxD), by_hand, rtol=1e-4, atol=1e-3)
    assert sae.W_enc.shape == (sae.d_in, sae.d_sae) == sae.W_dec.shape[::-1]
    assert sae.b_enc.shape == (sae.d_sae,)


@pytest.mark.parametrize("rows", [np.zeros((2, 48)), np.zeros((256, 2)), 1.0], ids=["width", "transposed", "scalar"])
def test_rows_of_another_width_are_refused(run, rows):
    sae = sae_jax.load(run.path, member=TOPK)
    with pytest.raises(InputError, match=r"shape \[..., 256\]"):
        sae.encode(rows)
    with pytest.raises(InputError, match=r"shape \[2, 256\] here: pass one of shape \[..., 48\]"):
        sae.decode(np.zeros((2, 256)))


def test_a_loaded_dictionary_describes_itself(run):
    metrics = run.members[TOPK]["metrics"]
    text = repr(sae_jax.load(run.path, member=TOPK))
    assert f"SAE {TOPK}\n  topk, 256 → 48 features\n  reads blocks.0.hook_resid_pre of bundled\n" in text
    assert f"explained variance {metrics['explained_variance']:.3f}, L0 {metrics['l0']:.1f}" in text
    assert repr(sae_jax.load(run.path / "members" / TOPK)) == text and f"from {run.path / 'members' / TOPK}" in text


def test_a_dictionary_that_was_taken_out_of_its_run_has_no_metrics(run, tmp_path):
    alone = sae_jax.load(shutil.copytree(run.path / "members" / TOPK, tmp_path / "alone"))
    assert "held out" not in repr(alone) and f"from {tmp_path / 'alone'}" in repr(alone)


def test_a_dictionary_of_saelens_is_loaded_too(run, tmp_path):
    from sae_jax.formats import save_dictionary

    written = load_dictionary(run.path / "members" / TOPK)
    cfg = written.cfg | {"metadata": written.cfg["metadata"] | {"model_name": None, "hook_name": None}}
    save_dictionary(replace(written, cfg=cfg), tmp_path / "theirs")
    sae = sae_jax.load(str(tmp_path / "theirs"))
    assert sae.kind == "topk" and "an unnamed hook of an unnamed model" in repr(sae)
    np.testing.assert_array_equal(sae.W_dec, written.tensors["W_dec"])
    with pytest.raises(InputError, match="is a dictionary, not a run: omit member='x'"):
        sae_jax.load(tmp_path / "theirs", member="x")


@pytest.mark.parametrize("name, trouble", [(None, "^member is missing"), ("topq", "^member topq is not in")])
def test_load_needs_a_member_if_there_are_several(run, name, trouble):
    with pytest.raises(InputError, match=f"{trouble}.*{TOPK}"):
        sae_jax.load(run.path, member=name)


def test_load_needs_a_finished_run_or_a_dictionary(tmp_path):
    with pytest.raises(InputError, match="none is no directory: give that of a run, or of an SAE of SAELens"):
        sae_jax.load(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is not finished: .* resume"):
        sae_jax.load(tmp_path)


def test_the_only_member_need_not_be_named(cache, tmp_path):
    settings = ("--model-name", "bundled", "--dataset", "bundled", "--n-samples", "100", "--seq-len", "10")
    settings += ("--hidden-dim", "48", "--activation", "topk", "--k", "8", "--epochs", "1")
    trained(tmp_path / "run", cache, *settings)
    assert sae_jax.load(tmp_path / "run").dictionary.name == TOPK


def test_a_run_shows_its_members(run):
    opened = analysis.open_run(str(run.path))
    text = repr(opened)
    assert "EXPERIMENT RESULTS" in text and "decoder   fitted to training rows" in text and "\x1b" not in text
    for name, member in run.members.items():
        variance = f"{member['metrics']['explained_variance']:.3f}"
        row = next(line for line in text.splitlines() if line.startswith(f"║ {name} "))  # a remark may follow
        assert variance in row
    assert list(opened.keys()) == list(opened) == [name for name, _ in opened.items()]
    assert TOPK in opened and "topk" in opened and "no such member" not in opened


def test_features_of_the_requested_members(run, cache, capsys):
    found = analysis.load_features(run, [TOPK], cache)
    assert list(found) == [TOPK] and "features" in capsys.readouterr().out
    assert found[TOPK].density_F.shape == (48,)
    firing = int((found[TOPK].density_F > 0).sum())
    assert f"Features({firing} of 48 features fire on {found[TOPK].rows:,} rows, 8.0 on each;" in repr(found)
    assert list(analysis.load_features(run, cache_dir=str(cache), quiet=True)) == list(run.members)
    assert analysis.load_features(run, [TOPK], cache)[TOPK].rows == found[TOPK].rows
    assert capsys.readouterr().out == ""  # nothing is computed twice
    with pytest.raises(InputError, match="gated is not in"):
        analysis.load_features(run, ["gated"], cache)
