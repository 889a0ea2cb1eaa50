"""Single attention heads: read, put back, spliced and exported as parts of the hooks with all heads."""

import json

import numpy as np
import pytest
import torch
from command_line import shared_cache, trained
from tiny_models import write_model

import main
import sae_jax
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from harvest.interventions.loss_recovered import losses
from harvest.model.language_model import LanguageModel
from harvest.model.logit_weights import residual_directions
from harvest.request import HEADS, HarvestRequest, Site
from harvest.sources import resolve

TOKENS_WxT = np.random.default_rng(0).integers(5, 4096, (4, 9), dtype=np.int32)
SMALL = (
    "--layer",
    "2",
    "--n-samples",
    "300",
    "--epochs",
    "2",
    "--hidden-dim",
    "48",
    "--activation",
    "topk",
    "--k",
    "8",
)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "gpt_neox"])
def test_a_head_is_a_part_of_its_hook(family, tmp_path):
    directory = write_model(family, tmp_path)
    model, (source, _) = LanguageModel.load(str(directory), "cpu"), resolve(HarvestRequest(str(directory), "bundled"))
    for hook in HEADS:
        whole, one = Site(1, hook), Site(1, f"{hook}.1")
        assert (one.hook_name, one.head, one.heads) == (whole.hook_name, 1, hook)
        found = model.activations(TOKENS_WxT, [whole])[whole], model.activations(TOKENS_WxT, [one])[one]
        width = found[1].shape[-1]
        assert width == source.width([f"{hook}.1"]) == source.widths["one head"]
        np.testing.assert_array_equal(found[1], found[0][..., width : 2 * width])
        with pytest.raises(InputError, match=r"--head 9: must be 0 to \d, the heads of"):
            model.activations(TOKENS_WxT, [Site(1, f"{hook}.9")])

        def damaged(x_NxD, first=width, stop=2 * width):
            """All heads, of which head 1 is damaged."""
            y_NxD = x_NxD.copy()
            y_NxD[:, first:stop] *= -0.5
            return y_NxD

        clean, of_whole = losses(model, TOKENS_WxT, whole, {"damaged": damaged})
        same, of_one = losses(model, TOKENS_WxT, one, {"damaged": lambda x_NxD: x_NxD * -0.5})
        np.testing.assert_allclose(same, clean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(of_one["damaged"], of_whole["damaged"], rtol=1e-5, atol=1e-6)
        assert (of_one["damaged"].kl_W > 1e-7).all()


def test_a_direction_of_a_head_adds_what_the_head_adds(tmp_path):
    model = LanguageModel.load(str(write_model("llama", tmp_path)), "cpu")
    direction_KxD = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    padded_KxD = np.pad(direction_KxD, ((0, 0), (8, 16)))
    expected = residual_directions(model, Site(1, "z"), padded_KxD)
    np.testing.assert_allclose(residual_directions(model, Site(1, "z.1"), direction_KxD), expected, atol=1e-6)


def test_a_dictionary_of_a_head_is_trained_evaluated_spliced_and_exported(tmp_path, tmp_path_factory, capsys):
    cache = shared_cache(tmp_path_factory)
    where = ("--model-name", "bundled", "--dataset", "bundled", *SMALL, "--hook", "z", "--head", "3")
    run = trained(tmp_path / "run", cache, *where)
    ((name, member),) = run.members.items()
    dictionary = run.dictionary(name)
    assert (dictionary.hook_name, dictionary.head, dictionary.d_in) == ("blocks.2.attn.hook_z", 3, 32)
    assert dictionary.cfg["reshape_activations"] == "none"
    argv = ["export", tmp_path / "run", "--to", tmp_path / "exported"]
    assert main.run_as_command([*map(str, argv)]) == 0
    for source in ("run", "exported"):
        argv = [
            "evaluate",
            tmp_path / source,
            "--ce-windows",
            "10",
            "--cache-dir",
            cache,
            "--json",
            tmp_path / "e.json",
        ]
        assert main.run_as_command([*map(str, argv)]) == 0
        (found,) = json.loads((tmp_path / "e.json").read_text())["dictionaries"]
        assert found["hook_name"] == "blocks.2.attn.hook_z"
    assert found["metrics"]["ce_recovered"] > 0
    assert "hook_head_index" not in capsys.readouterr().out

    model, sae = FinishedRun.open(tmp_path / "run").language_model, sae_jax.load(tmp_path / "exported")
    tokens_WxT = np.random.default_rng(1).integers(5, 4096, (3, 12), dtype=np.int32)
    site, tokens = Site(2, "z.3"), torch.from_numpy(tokens_WxT).long()

    def reconstructed(x_NxD: np.ndarray) -> np.ndarray:
        return np.asarray(sae.decode(sae.encode(x_NxD)))

    _, of_head = losses(model, tokens_WxT, site, {"sae": reconstructed}, sae.first_position)
    with sae_jax.spliced(model, sae), torch.inference_mode():
        logits_WxTxV = model.bridge(tokens, return_type="logits")
    logp_WxPxV = logits_WxTxV[:, sae.first_position : -1].double().log_softmax(-1)
    ce_W = -logp_WxPxV.gather(-1, tokens[:, sae.first_position + 1 :, None])[..., 0].mean(1).numpy()
    np.testing.assert_allclose(ce_W, of_head["sae"].ce_W, atol=1e-4)

    other = LanguageModel.load(str(write_model("llama", tmp_path / "model")), "cpu")  # its heads are 8 wide
    with sae_jax.spliced(other, sae), pytest.raises(InputError, match="cannot replace an activation of shape"):
        other.bridge(tokens, return_type="logits")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hook": ("resid_pre", "z"), "head": 1}, "--head 1: resid_pre has no heads: use it with --hook z, q, k, v"),
        ({"hook": ("z.1", "z.2")}, "train each head in a run of its own"),
        ({"hook": "resid_pre.1"}, "--hook resid_pre.1: must be one of"),
    ],
)
def test_heads_that_cannot_be_read_are_refused(fields, says):
    with pytest.raises(InputError, match=says):
        HarvestRequest(**fields)
