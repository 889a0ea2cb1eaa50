"""`sae_jax.from_pretrained` with the real client and a hub on this machine, with its cache, and without a hub."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import ROOT
from hub_server import GATED, hub, silent_hub
from plain_sae import D, F, K, saelens_dictionary, saelens_in_numpy
from safetensors.numpy import save

from harvest.errors import InputError
from sae_jax.formats import save_dictionary
from sae_jax.formats.dictionary import SCALED
from sae_jax.pretrained import from_pretrained

X_NxD = np.random.default_rng(0).standard_normal((20, D)) + 3
LOAD = """
import json, sys, time
import huggingface_hub.hf_api, torch, sae_jax.pretrained  # before the time is taken
import numpy as np
import sae_jax
from harvest.errors import InputError
x_NxD = np.array(json.loads(sys.argv[1]))
for asked in map(json.loads, sys.argv[2:]):
    began = time.monotonic()
    try:
        sae = sae_jax.from_pretrained(*asked)
        said = {"x_hat": sae(x_NxD).tolist(), "repr": repr(sae), "hook_name": sae.hook_name}
    except InputError as error:
        said = {"error": str(error)}
    print(json.dumps(said | {"seconds": time.monotonic() - began}))
"""


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def saelens_6(directory: Path) -> dict[str, bytes]:
    save_dictionary(saelens_dictionary("jumprelu"), directory)
    return content(directory)


def saelens_before_6(normalize: str) -> dict[str, bytes]:
    """The files as SAELens 3 to 5 wrote them."""
    cfg = {"architecture": "standard", "d_in": D, "d_sae": F, "dtype": "torch.float32", "model_name": "gpt2-small"}
    cfg |= {"hook_point": "blocks.8.hook_resid_pre", "activation_fn_str": "relu", "normalize_activations": normalize}
    weights = save(saelens_dictionary("standard").tensors)
    return {"cfg.json": json.dumps(cfg).encode(), "sae_weights.safetensors": weights}


def dictionary_learning(directory: Path) -> dict[str, bytes]:
    t = saelens_dictionary("topk").tensors
    state = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "decoder.weight": t["W_dec"].T}
    directory.mkdir()
    state = {name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()}
    torch.save(state | {"b_dec": torch.tensor(t["b_dec"]), "k": torch.tensor(K)}, directory / "ae.pt")
    trainer = {"dict_class": "AutoEncoderTopK", "activation_dim": D, "dict_size": F, "k": K, "layer": 3}
    trainer |= {"lm_name": "pythia", "submodule_name": "resid_post_layer_3"}
    (directory / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return content(directory)


def list_of_saelens(directory: Path) -> str:
    jb = {"repo_id": "jb/gpt2", "model": "gpt2-small", "conversion_func": None}
    jb |= {"config_overrides": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}}
    jb |= {"saes": [{"id": "blocks.8.hook_resid_pre", "path": "layer_8"}]}
    scaled = {"repo_id": "jb/gpt2", "model": "gpt2-small", "config_overrides": None}
    scaled |= {"saes": [{"id": "scaled", "path": "scaled", "norm_scaling_factor": 0.5}, {"id": 7, "path": "none"}]}
    path = directory / "pretrained_saes.yaml"
    path.write_text(yaml.safe_dump({"gpt2-small-res-jb": jb, "gpt2-small-scaled": scaled}))
    return str(path)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[dict, str]:
    """(the repositories of a hub, the path of a list of releases)"""
    folder = tmp_path_factory.mktemp("published")
    layer_8, scaled = saelens_before_6("none"), saelens_before_6(SCALED)
    repositories = {
        "ours/saes": {f"jump/one/{name}": data for name, data in saelens_6(folder / "a").items()},
        "ours/top": saelens_6(folder / "c"),
        "jb/gpt2": {f"layer_8/{n}": d for n, d in layer_8.items()} | {f"scaled/{n}": d for n, d in scaled.items()},
        "dl/saes": {f"layer_3/trainer_0/{n}": d for n, d in dictionary_learning(folder / "e").items()},
        "ours/no-weights": {"one/cfg.json": b"{}"},
    }
    repositories["dl/saes"]["layer_3/trainer_0/ae_unused.bin"] = b"never downloaded"
    return repositories, list_of_saelens(folder)


def loaded(home: Path, endpoint: str, *asked: list) -> list[dict]:
    """What separate calls give in one process, because the client reads its environment when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    there = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", LOAD, json.dumps(X_NxD.tolist()), *map(json.dumps, asked)]
    done = subprocess.run(command, cwd=ROOT, env=kept | there, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_three_layouts_are_loaded_from_the_hub_and_then_from_its_cache(published, tmp_path):
    repositories, releases = published
    asked = [["ours/saes", "jump/one"], ["ours/top"], ["dl/saes", "layer_3/trainer_0"]]
    asked += [["gpt2-small-res-jb", "blocks.8.hook_resid_pre", releases], ["gpt2-small-scaled", "scaled", releases]]
    with hub(repositories, {}) as endpoint:
        online = loaded(tmp_path, endpoint, *asked)
    assert not any("error" in said for said in online), online
    mean_Nx1 = X_NxD.mean(1, keepdims=True)
    expected = [
        saelens_in_numpy(saelens_dictionary("jumprelu"), X_NxD)[1],
        saelens_in_numpy(saelens_dictionary("jumprelu"), X_NxD)[1],
        saelens_in_numpy(saelens_dictionary("topk"), X_NxD)[1],
        saelens_in_numpy(saelens_dictionary("standard"), X_NxD - mean_Nx1)[1] + mean_Nx1,  # as the list says
        saelens_in_numpy(saelens_dictionary("standard"), X_NxD * 0.5)[1] / 0.5,
    ]
    for said, x_hat_NxD in zip(online, expected, strict=True):
        np.testing.assert_allclose(said["x_hat"], x_hat_NxD, atol=1e-4)
    hooks = ["blocks.0.hook_mlp_out"] * 2 + ["blocks.3.hook_resid_post"] + ["blocks.8.hook_resid_pre"] * 2
    assert [said["hook_name"] for said in online] == hooks
    assert "SAE gpt2-small-res-jb blocks.8.hook_resid_pre\n" in online[3]["repr"]
    assert "its rows were scaled by 0.5, which is folded into its weights here" in online[4]["repr"]
    assert not list(tmp_path.rglob("ae_unused.bin"))

    offline = loaded(tmp_path, "http://127.0.0.1:9", *asked, ["ours/saes", "jump/two"])
    assert [said.get("x_hat") for said in offline[:-1]] == [said["x_hat"] for said in online]
    assert "cannot be reached" in offline[-1]["error"] and offline[-1]["seconds"] < 10


REFUSED = [
    (
        ["ours/none", "one"],
        "from_pretrained: ours/none one: the hub at {} has no repository of this name, or it is private",
    ),
    (
        ["ours/saes", "jump/on"],
        "from_pretrained: ours/saes has no folder 'jump/on' with an SAE .* give one of jump/one$",
    ),
    (["ours/saes"], "from_pretrained: ours/saes has no SAE at its top .* give one of jump/one$"),
    (["ours/no-weights", "one"], "sae_weights.safetensors cannot be read because it is missing"),
    ([GATED, "one"], "from_pretrained: some-org/gated one: access is gated: accept the terms at {}/some-org/gated"),
    (
        ["gpt2-small-scaled", "scale", "LIST"],
        "release gpt2-small-scaled has no SAE 'scale': give one of scaled .of 2.$",
    ),
    (["gpt2-small-scaled", "7", "LIST"], "jb/gpt2 has no folder 'none' with an SAE"),
]


def test_what_is_missing_is_refused_in_one_line(published, tmp_path):
    repositories, releases = published
    asked = [[releases if word == "LIST" else word for word in words] for words, _ in REFUSED]
    with hub(repositories, {}) as endpoint:
        answers = loaded(tmp_path, endpoint, *asked)
    for said, (_, reason) in zip(answers, REFUSED, strict=True):
        assert re.search(reason.format(re.escape(endpoint), re.escape(endpoint)), said["error"]), said
        assert "\n" not in said["error"]


def test_a_hub_that_never_answers_is_given_up(tmp_path):
    with silent_hub() as endpoint:
        (said,) = loaded(tmp_path, endpoint, ["ours/saes", "one"])
    assert said["seconds"] < 10  # the client itself would try for half a minute
    assert said["error"].endswith("no copy in the local cache: give the directory of a copy to sae_jax.load")


@pytest.mark.parametrize(
    ("release", "releases", "reason"),
    [
        (
            "gpt2-small-res-jb",
            None,
            "is neither a repository nor a known release: give OWNER/NAME .* `pip install --no-deps sae-lens`",
        ),
        ("gpt2-small-res", "LIST", "give one of gpt2-small-res-jb.*, or give OWNER/NAME of a repository on the hub"),
        ("tests/sae_jax", None, "give a directory to sae_jax.load"),
        ("", None, "'' is neither a repository nor a known release: give OWNER/NAME"),
        (None, None, "needs a release and an id in words, not None: give two strings"),
        ("a/b/c", None, "neither a repository nor a known release"),
        ("any", "nowhere.yaml", "nowhere.yaml cannot be read"),
        ("any", "pyproject.toml", "pyproject.toml (cannot be read|is no list of releases)"),
    ],
)
def test_a_name_that_cannot_be_found_is_refused_without_a_hub(published, monkeypatch, release, releases, reason):
    monkeypatch.chdir(ROOT)
    began = time.monotonic()
    with pytest.raises(InputError, match=reason):
        from_pretrained(release, "one", published[1] if releases == "LIST" else releases)
    assert time.monotonic() - began < 3
