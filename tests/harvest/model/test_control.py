"""The control: a model with shuffled weights, which is the same for every command on the run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from command_line import BUNDLED, environment, shared_cache

import main
from analysis.runs.finished import FinishedRun
from harvest.capture import harvest, store_name
from harvest.errors import InputError
from harvest.model.language_model import LanguageModel
from harvest.model.loading import shuffled
from harvest.request import HarvestRequest, Site
from harvest.sources import BUNDLED_MODEL, Source

CONTROL = "random-weights"
ASKED = {"model_name": "bundled", "dataset": "bundled", "n_samples": 300, "seq_len": 20, "layer": 2}
ONE_BATCH = 103 * 19 * 256 * 2  # bytes of the rows of one batch


def load(control: str | None = CONTROL) -> LanguageModel:
    return LanguageModel.load(str(BUNDLED_MODEL), device="cpu", control=control)


def raw() -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()


def test_names_of_stores_and_runs_without_a_control_have_not_changed():
    model, text = (Source(n, f"/{n}", False, 4, f"{w}'s fingerprint") for n, w in (("m", "model"), ("d", "text")))
    earlier = HarvestRequest(max_norm_ratio=0)  # rows of extreme norm were kept
    assert store_name(earlier, Site(0, "resid_pre"), model, text) == "e482736ed612a136f249"
    instead = (replace(source, fell_back=True) for source in (model, text))
    assert store_name(earlier, Site(0, "resid_pre"), *instead) == "e482736ed612a136f249"
    assert store_name(HarvestRequest(), Site(0, "resid_pre"), model, text) != "e482736ed612a136f249"
    assert "control" not in HarvestRequest().to_json()
    named = store_name(HarvestRequest(control=CONTROL), Site(0, "resid_pre"), model, text)
    assert named.endswith("-random-weights") and not named.startswith("e482736ed612a136f249")
    with pytest.raises(InputError, match="^--control noise: must be random-weights$"):
        HarvestRequest(control="noise")


def test_each_matrix_is_permuted():
    before, after = dict(raw().named_parameters()), dict(shuffled(raw()).named_parameters())
    for name, weight in before.items():
        if weight.ndim > 1:
            assert torch.equal(weight.flatten().sort()[0], after[name].flatten().sort()[0])
            assert (weight == after[name]).float().mean() < 0.01
        else:
            assert torch.equal(weight, after[name])


def test_the_control_is_the_same_each_time_and_completely_shuffled():
    model, expected = load(), shuffled(raw())
    assert model.weights_hash() == load().weights_hash() != load(None).weights_hash()
    tokens_WxT = np.random.default_rng(0).integers(0, 4096, (3, 20), dtype=np.int32)
    with torch.inference_mode():
        output = expected(torch.from_numpy(tokens_WxT).long(), output_hidden_states=True)
        logits = model.bridge(model.token_ids(tokens_WxT), return_type="logits", use_cache=False)
    torch.testing.assert_close(logits, output.logits, rtol=1e-4, atol=1e-3)
    for site in (Site(2, "resid_pre"), Site(1, "resid_post")):
        found = model.activations(tokens_WxT, [site])[site]
        np.testing.assert_allclose(found, output.hidden_states[2], rtol=1e-4, atol=1e-3)


def test_rows_of_the_control_differ_and_a_stopped_harvest_continues(tmp_path):
    def rows_of(cache, **options):
        (store,) = harvest(HarvestRequest(**ASKED, **options), cache, shard_bytes=ONE_BATCH).values()
        return store, store.train.read(0, 2000)

    def stop(_, done, total):
        if done > 4000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(HarvestRequest(**ASKED, control=CONTROL), tmp_path / "a", on_progress=stop, shard_bytes=ONE_BATCH)
    (unfinished,) = (path for path in (tmp_path / "a" / "activations").iterdir() if path.is_dir())
    good = {path: path.stat().st_mtime_ns for path in unfinished.rglob("rows-*.npy")}
    assert good and not (unfinished / "manifest.json").exists()
    resumed, resumed_NxD = rows_of(tmp_path / "a", control=CONTROL)
    whole, whole_NxD = rows_of(tmp_path / "b", control=CONTROL)
    assert resumed.manifest == whole.manifest and np.array_equal(resumed_NxD, whole_NxD)
    assert all(path.stat().st_mtime_ns == time for path, time in good.items())
    plain, plain_NxD = rows_of(tmp_path / "b")
    assert "control" not in plain.manifest and plain.directory != whole.directory
    assert whole.manifest["control"] == CONTROL and whole.manifest["weights_hash"] == load().weights_hash()
    assert whole.manifest["windows_hash"] == plain.manifest["windows_hash"]
    assert not np.allclose(plain_NxD, whole_NxD, atol=0.5)


def test_a_run_of_the_control_is_measured_and_opened_on_the_control(tmp_path_factory, tmp_path, capsys):
    cache = shared_cache(tmp_path_factory)
    argv = [*BUNDLED, "--n-samples", "300", "--seq-len", "20", "--activation", "topk", "--hidden-dim", "48", "--k", "8"]
    argv += ["--layer", "2", "--epochs", "1", "--ce-windows", "20", "--cache-dir", str(cache)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(cache).items():
            patch.setenv(name, value)
        for name, control in (("plain", ()), ("control", ("--control", CONTROL))):
            assert main.run_as_command([*argv, *control, "--run-dir", str(tmp_path / name)]) == 0
            assert ("control: random-weights" in capsys.readouterr().out) == bool(control)
        measured = ["evaluate", str(tmp_path / "control"), "--json", str(tmp_path / "e.json"), "--ce-windows", "20"]
        assert main.run_as_command([*measured, "--cache-dir", str(cache)]) == 0
        assert main.run_as_command(["evaluate", str(tmp_path / "control"), str(tmp_path / "plain")]) == 2
        assert "evaluate each alone" in capsys.readouterr().err
    plain, control = (FinishedRun.open(tmp_path / name) for name in ("plain", "control"))
    assert "control" not in plain.config["asked"]["harvest"] and plain.request.control is None
    assert control.request.control == control.config["stores"][0]["control"] == CONTROL
    assert control.language_model.weights_hash() == load().weights_hash()
    assert plain.language_model.weights_hash() == load(None).weights_hash()
    ce = {run.path.name: next(iter(run.members.values()))["metrics"]["ce_clean"] for run in (plain, control)}
    assert ce["plain"] < 4 and ce["control"] > np.log(4096) - 0.5  # nats: about the loss of a uniform guess
    (evaluated,) = json.loads((tmp_path / "e.json").read_text())["dictionaries"]
    assert evaluated["metrics"]["ce_clean"] > np.log(4096) - 0.5
    (member,) = control.members
    assert control.dictionary(member).cfg["metadata"]["control"] == CONTROL
    assert control.store(Site(2, "resid_pre"), cache).manifest["control"] == CONTROL
