"""Rows of another program are imported, trained on, evaluated, exported and analysed, with and without a text."""

import json
import re
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from command_line import environment, shared_cache
from sklearn.datasets import load_digits

import main
from analysis.runs.finished import FinishedRun
from analysis.runs.reproduce import reproduction_command
from harvest.model.language_model import LanguageModel
from harvest.request import Site
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text.documents import documents
from sae_jax.formats import load_dictionary

SETTINGS = ("--hidden-dim", "48", "--target-l0", "8", "--k", "8", "--block-steps", "4", "--dead-threshold", "0.1")
SETTINGS += ("--batch-size", "64", "--epochs", "4")
SITE = Site(1, "resid_pre")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return shared_cache(tmp_path_factory)


@pytest.fixture(autouse=True, scope="module")
def offline(cache):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(cache).items():
            patch.setenv(name, value)
        yield


def succeed(*argv: object) -> None:
    assert main.run_as_command([*map(str, argv)]) == 0


def refusal(capsys, *argv: object) -> str:
    capsys.readouterr()
    assert main.run_as_command([*map(str, argv)]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def images(tmp_path_factory, cache) -> Path:
    """A run on 1,797 real images of digits, 64 pixels each."""
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "digits.npy", load_digits().data.astype(np.float32))
    succeed("import-rows", folder / "digits.npy", "--to", folder / "rows")
    always = ("--rows", folder / "rows", "--run-dir", folder / "run", "--cache-dir", cache, "--quiet")
    succeed("--activation", "topk", "relu", *SETTINGS, *always)
    return folder / "run"


def by_hand(run: Path, member: str) -> float:
    """The explained variance of an exported member on the held-out rows that were not used for calibration."""
    from sae_jax.calibration import metric_windows

    finished = FinishedRun.open(run)
    held_out = finished.store(finished.site(member), run.parent).held_out
    x_NxD = held_out[held_out.window_rows(metric_windows(held_out))].astype(np.float64)
    tensors = {name: t.astype(np.float64) for name, t in load_dictionary(run / "members" / member).tensors.items()}
    z_NxF = np.maximum((x_NxD - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"], 0)
    z_NxF[np.argsort(-z_NxF, 1).argsort(1) >= 8] = 0
    y_NxD = z_NxF @ tensors["W_dec"] + tensors["b_dec"]
    return 1 - np.square(x_NxD - y_NxD).sum() / np.square(x_NxD - x_NxD.mean(0)).sum()


def test_images_are_trained_on_evaluated_and_exported(images, cache, tmp_path, capsys):
    finished = FinishedRun.open(images)
    member = next(name for name in finished.members if name.startswith("topk"))
    variance = finished.members[member]["metrics"]["explained_variance"]
    assert variance > 0.5
    assert by_hand(images, member) == pytest.approx(variance, abs=2e-3)
    succeed("export", images, "--member", member, "--to", tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "for rows of 64 dimensions that no language model gave" in card and "windows" not in card
    for source in ([images], [tmp_path / "exported", "--rows", images.parent / "rows"]):
        succeed("evaluate", *source, "--cache-dir", cache, "--json", tmp_path / "e.json")
        found = {d["name"]: d["metrics"] for d in json.loads((tmp_path / "e.json").read_text())["dictionaries"]}
        measured = found.get(member) or found["exported"]
        assert measured["explained_variance"] == pytest.approx(variance, abs=1e-6)
        assert "ce_recovered" not in measured


def test_images_are_studied_and_reported_by_the_numbers_of_their_rows(images, cache, tmp_path, capsys):
    succeed("study", images, "--cache-dir", cache)
    said = " ".join(capsys.readouterr().out.split())
    assert "probing and absorption are not measured: the rows were imported without a language model" in said
    assert "the rows have no labels" in said
    answers = json.loads((images / "analysis" / "study.json").read_text())["answers"]
    assert not any(
        "firings on one token" in measure and value["mean"] is not None
        for answer in answers
        for row in answer["table"].values()
        for measure, value in row.items()
    )
    succeed("report", images, "--to", tmp_path / "report.html", "--cache-dir", cache)
    assert re.search(r"row 1?,?\d{1,3}\b", (tmp_path / "report.html").read_text())


@pytest.mark.parametrize(
    "command",
    [
        ("find-feature", "RUN", "sea"),
        ("steer", "RUN", "--member", "topk", "--feature", 1, "--prompt", "a"),
        ("attribute", "RUN", "--member", "topk", "--prompt", "a", "--target", "b"),
        ("saebench", "RUN", "--metrics", "probing"),
        ("export", "RUN", "--member", "topk", "--neuronpedia", "--to", "pages"),
    ],
    ids=lambda command: command[0],
)
def test_what_needs_a_text_says_so(command, images, cache, capsys):
    argv = [images if word == "RUN" else word for word in command]
    message = refusal(capsys, *argv, "--cache-dir", cache)
    assert "its rows were imported without a language model, which this needs" in message
    assert message.count("\n") == 1


def test_a_run_follows_its_rows_and_knows_them_by_content(images, cache, tmp_path, capsys):
    finished = FinishedRun.open(images)
    command = reproduction_command(finished.config, finished.results)
    assert command.startswith(f"python main.py --rows {images.parent / 'rows'} --activation topk relu")
    moved, run = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(images.parent / "rows", moved)
    shutil.copytree(images, run)
    shutil.rmtree(run / "analysis", ignore_errors=True)
    config = (run / "config.json").read_text()
    again = ("--activation", "topk", "relu", *SETTINGS, "--run-dir", run, "--cache-dir", cache)
    succeed("--rows", moved, *again)
    assert "is finished" in capsys.readouterr().out
    assert str(moved) not in config and str(moved) in (run / "config.json").read_text()
    shutil.rmtree(moved)
    assert f"are not at {moved} any more" in refusal(capsys, "study", run, "--cache-dir", cache)
    other = tmp_path / "other"
    np.save(tmp_path / "other.npy", load_digits().data[::-1].astype(np.float32))
    succeed("import-rows", tmp_path / "other.npy", "--to", other)
    assert "holds a run of another configuration" in refusal(capsys, "--rows", other, *again)


def test_flags_of_a_harvest_are_refused_beside_rows(images, cache, capsys):
    message = refusal(capsys, "--rows", images.parent / "rows", "--layer", "3", "--cache-dir", cache)
    assert "--layer has no effect with --rows" in message
    assert "is no store: give a store" in refusal(capsys, "--rows", images.parent, "--cache-dir", cache)


def test_rows_of_a_language_model_are_analysed_like_its_harvest(cache, tmp_path, capsys):
    """Tokens of SAELens' layout: each window begins with BOS, which becomes no row."""
    model = LanguageModel.load(str(BUNDLED_MODEL), bos="off")
    texts = islice(documents(str(BUNDLED_CORPUS)), 800)
    ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"][:15] for text in texts]
    tokens_WxT = np.array([window for window in ids if len(window) == 15])
    tokens_WxT = np.concatenate([np.zeros((len(tokens_WxT), 1), np.int64), tokens_WxT], 1)
    np.save(tmp_path / "tokens.npy", tokens_WxT)
    np.save(tmp_path / "rows.npy", model.activations(tokens_WxT, [SITE])[SITE])
    place = ("--model-name", "bundled", "--layer", SITE.layer, "--hook", SITE.hook)
    rows = tmp_path / "store"
    succeed("import-rows", tmp_path / "rows.npy", "--tokens", tmp_path / "tokens.npy", *place, "--to", rows)
    run = tmp_path / "run"
    always = ("--run-dir", run, "--cache-dir", cache)
    succeed("--rows", rows, "--activation", "topk", "relu", *SETTINGS, "--ce-windows", "20", *always)
    finished = FinishedRun.open(run)
    member = next(iter(finished.members))
    assert finished.members[member]["metrics"]["ce_clean"] < 5
    assert finished.dictionary(member).hook_name == SITE.hook_name
    assert (finished.dictionary(member).context_size, finished.dictionary(member).prepend_bos) == (16, True)
    capsys.readouterr()
    succeed("evaluate", run, "--ce-windows", "20", "--cache-dir", cache, "--json", tmp_path / "e.json")
    found = next(d for d in json.loads((tmp_path / "e.json").read_text())["dictionaries"] if d["name"] == member)
    for name, value in finished.members[member]["metrics"].items():
        if name in found["metrics"]:
            assert found["metrics"][name] == pytest.approx(value, rel=1e-5), name
    assert "trained on windows" not in capsys.readouterr().out
    succeed("export", run, "--member", member, "--to", tmp_path / "exported")
    assert "all positions behind BOS of windows of 16 tokens" in (tmp_path / "exported" / "README.md").read_text()
    capsys.readouterr()
    succeed("find-feature", run, "little", "--cache-dir", cache)
    assert "passages" in capsys.readouterr().out
