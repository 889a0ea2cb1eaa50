"""Models of many families: what they do not support is found before a harvest and reported in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import write_model

import analysis
import main
from harvest.capture import harvest
from harvest.errors import InputError
from harvest.interventions.ablation import lost_without
from harvest.interventions.attribution import Output
from harvest.interventions.loss_recovered import losses
from harvest.interventions.steering import Change, next_probabilities, surprise, write_texts
from harvest.model.language_model import LanguageModel
from harvest.model.library_errors import explained
from harvest.model.logit_weights import logit_weights
from harvest.model.tokenizer import load_tokenizer
from harvest.rehearsal import rehearse
from harvest.request import HOOKS, HarvestRequest, Site
from harvest.sources import BUNDLED_MODEL

TOKENS_WxT = np.random.default_rng(0).integers(5, 4096, (6, 12), dtype=np.int32)
ADDED = "The model probably normalizes after the addition"
LACKING, UNMET = "no such point in layer 1", "does not run this point in layer 1"
UNRUN = "AttributeError: 'CodeGenAttention' object has no attribute 'embed_positions'"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A function that returns the model of a family, which is made once."""
    made: dict[str, LanguageModel] = {}

    def get(family: str) -> LanguageModel:
        if family not in made:
            directory = BUNDLED_MODEL
            if family != "bundled":
                directory = write_model(family, tmp_path_factory.mktemp("model"))
            made[family] = LanguageModel.load(str(directory), device="cpu")
        return made[family]

    return get


# Values at hooks.


@pytest.mark.parametrize("family", ["bundled", "llama", "gemma2", "granite", "opt"])
def test_hooks_whose_values_fit_their_names_can_be_harvested_and_measured(model, family):
    sites = [Site(layer, hook) for layer in (0, 1) for hook in HOOKS]
    rehearsed = rehearse(model(family), TOKENS_WxT, sites, 1)
    assert {site: found.trouble for site, found in rehearsed.items()} == dict.fromkeys(sites)


REFUSED = {
    ("gpt_neox", "resid_mid"): LACKING,
    ("post-norm opt", "resid_mid"): ADDED,
    ("post-norm opt", "attn_out"): ADDED,
    ("post-norm opt", "mlp_out"): ADDED,
    ("bert", "resid_mid"): ADDED,
    ("bert", "attn_out"): ADDED,
    ("codegen", "attn_out"): UNRUN,
    ("codegen", "resid_post"): UNRUN,
    ("gpt", "resid_post"): UNMET,
    ("gpt", "attn_out"): "--hook attn_out: its meaning in this model cannot be checked",
}


@pytest.mark.parametrize(("family", "hook"), REFUSED)
def test_hooks_with_another_tensor_or_none_are_refused_with_the_reason(model, family, hook):
    with pytest.raises(InputError, match="--hook|cannot run") as caught:
        rehearse(model(family), TOKENS_WxT, [Site(1, "resid_pre"), Site(1, hook)], 1)
    assert REFUSED[family, hook] in str(caught.value)


@pytest.mark.parametrize(
    ("family", "hook", "trouble"),
    [
        ("bloom", "resid_mid", "this model cannot be run from there"),
        ("bert", "resid_pre", "is an encoder: each of its positions sees the whole text"),
        ("gpt_neox", "attn_out", None),
        ("post-norm opt", "resid_post", None),
        ("codegen", "resid_pre", None),
    ],
)
def test_sites_that_can_be_harvested_but_not_measured_are_found_by_the_rehearsal(model, family, hook, trouble):
    (found,) = rehearse(model(family), TOKENS_WxT, [Site(1, hook)], 1).values()
    assert (found.trouble is None) is (trouble is None) and (trouble or "") in (found.trouble or "")


def test_a_site_without_loss_recovered_is_refused_only_if_it_is_requested(
    tmp_path,
):
    directory, cache = write_model("bloom", tmp_path / "model"), tmp_path / "cache"
    request = HarvestRequest(str(directory), "bundled", 1, ("resid_pre", "resid_mid"), n_samples=20)
    with pytest.raises(InputError, match="resid_mid.*--ce-windows 0"):
        harvest(request, cache, loss_recovered=True)
    assert not list(cache.glob("activations/*/*"))
    assert len(harvest(request, cache)) == 2
    with pytest.raises(InputError, match="resid_mid.*--ce-windows 0"):
        harvest(request, cache, loss_recovered=True)  # the activations are cached now


def test_a_mistyped_hook_name_names_the_nearest_one(tmp_path):
    asked = HarvestRequest("bundled", "bundled", hook_name=("blocks.2.hook_resid_prae",), n_samples=20)
    with pytest.raises(InputError, match="did you mean blocks.2.hook_resid_pre?"):
        harvest(asked, tmp_path)


# Encoders.


@pytest.mark.parametrize(
    ("family", "is_encoder"),
    [("bundled", False), ("llama", False), ("bloom", False), ("bert", True), ("roberta", True)],
)
def test_encoders_are_recognized_by_their_outputs(model, family, is_encoder):
    assert model(family).reads_both_ways is is_encoder


def unchanged(x_NxD):
    return x_NxD


NEXT_TOKEN = {
    "losses": lambda model, site: losses(model, TOKENS_WxT, site, {"same": unchanged}),
    "write": lambda model, site: write_texts(model, [7, 8, 9], Change(site, unchanged, 1), 3),
    "surprise": lambda model, site: surprise(model, [7, 8], np.array([[9, 10]])),
    "next_probabilities": lambda model, site: next_probabilities(model, [7, 8], site, np.zeros((1, 32), "f"), 1),
    "Output": lambda model, site: Output(model, [7, 8, 9], site, np.zeros(4096)),
    "lost_without": lambda model, site: lost_without(model, TOKENS_WxT, site, unchanged, 1),
    "logit_weights": lambda model, site: logit_weights(model, np.ones((2, 32))),
}


@pytest.mark.parametrize("what", NEXT_TOKEN)
def test_measurements_of_the_next_token_are_refused_for_an_encoder(model, what):
    with pytest.raises(InputError, match="is an encoder: each of its positions sees the whole text"):
        NEXT_TOKEN[what](model("bert"), Site(1, "resid_pre"))


def test_an_encoder_is_harvested_and_missing_measurements_are_reported(tmp_path):
    directory, said = write_model("bert", tmp_path / "model"), []
    request = HarvestRequest(str(directory), "bundled", 1, "resid_post", n_samples=20, store_dtype="float32")
    for _ in ("harvested", "found again"):
        (store,) = harvest(request, tmp_path / "cache", say=said.append, loss_recovered=True).values()
        assert sum("not measured" in line and "is an encoder" in line for line in said) == 1
        said.clear()
    raw = transformers.BertModel.from_pretrained(directory, add_pooling_layer=False).eval()
    with torch.inference_mode():
        tokens = torch.from_numpy(store.train.windows.astype(np.int64))
        expected = raw(tokens, output_hidden_states=True).hidden_states[2][:, 1:]
    found = store.train.read(0, len(store.train)).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_run_on_an_encoder_refuses_only_commands_that_need_a_next_token(tmp_path, capsys):
    directory, cache = write_model("bert", tmp_path / "model"), ("--cache-dir", str(tmp_path / "cache"))
    run = str(tmp_path / "run")
    argv = [
        "--model-name",
        str(directory),
        "--dataset",
        "bundled",
        "--n-samples",
        "60",
        "--layer",
        "1",
        "--epochs",
        "1",
    ]
    argv += ["--hidden-dim", "16", "--activation", "topk", "--k", "4", "--run-dir", run, *cache]
    for _ in ("trained", "found finished"):
        assert main.run_as_command(argv) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "ce_recovered" not in results["members"][0]["metrics"] and results["loss_recovered"]["windows"] == 0
    said = capsys.readouterr().out
    assert said.count("not measured: ") == 1 and said.count("is finished") == 1
    assert main.run_as_command(["evaluate", run, *cache]) == 0
    assert "not measured: " in capsys.readouterr().out
    prompt = ["--prompt", "The ships lay in the", "--target", " sea"]
    for command in (["steer", run, "--feature", "0", *cache], ["attribute", run, *prompt]):
        assert main.run_as_command(command) == 2
        assert "is an encoder: each of its positions sees the whole text" in capsys.readouterr().err
    (found,) = analysis.load_features(analysis.open_run(run), cache_dir=tmp_path / "cache").values()
    assert found.promoted_FxT.shape == (16, 0) and found.density_F.any()


# Files of different models.


def test_an_encoder_decoder_is_refused_before_it_is_loaded(tmp_path):
    with pytest.raises(InputError, match="t5 is an encoder-decoder, which is not supported"):
        LanguageModel.load(str(write_model("t5", tmp_path)), device="cpu")


def edited_config(directory: Path, **values) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("family", "prefix", "values", "lacking"),
    [
        ("gpt2", "transformer.", {"n_layer": 2}, "h.2."),
        ("gpt2", "", {"n_layer": 2}, "h.2."),
        ("llama", "model.", {"num_hidden_layers": 1}, "layers.1."),
        ("bert", "bert.", {"num_hidden_layers": 2}, "encoder.layer.2."),
    ],
)
def test_weights_of_more_layers_than_configured_are_refused(tmp_path, family, prefix, values, lacking):
    directory = write_model(family, tmp_path)
    edited_config(directory, **values)
    weights = load_file(directory / "model.safetensors")
    own = next(name.partition(".")[0] + "." for name in weights if ".0." in name)
    renamed = {prefix + name.removeprefix(own) if name.startswith(own) else name: t for name, t in weights.items()}
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="has fewer layers or parts, so the two do not belong together") as caught:
        LanguageModel.load(str(directory), device="cpu")
    assert lacking in str(caught.value)


def test_a_head_for_another_task_is_reported_and_not_refused(tmp_path):
    directory = write_model("gpt2", tmp_path)
    weights = load_file(directory / "model.safetensors")
    save_file(weights | {"score.weight": torch.ones(2, 32)}, directory / "model.safetensors", metadata={"format": "pt"})
    loaded = LanguageModel.load(str(directory), device="cpu")
    assert loaded.notes == ("weights in its files are not used: score.weight",)


def test_a_token_without_an_embedding_is_refused_before_the_first_batch(tmp_path):
    directory = write_model("gpt2", tmp_path / "model")
    edited_config(directory, vocab_size=1000)
    weights = load_file(directory / "model.safetensors")
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:1000].clone()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    request = HarvestRequest(str(directory), "bundled", 1, n_samples=20)
    with pytest.raises(
        InputError, match=r"token 4,0\d\d is in the text, but the model has embeddings of only 1,000 tokens"
    ):
        harvest(request, tmp_path / "cache")


@pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '{"model": {"type": "BPE"}}'])
def test_an_unreadable_tokenizer_is_reported_in_one_sentence(tmp_path, text):
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((BUNDLED_MODEL / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=f"^{tmp_path}: its tokenizer cannot be loaded: "):
        load_tokenizer(str(tmp_path))


# Errors of libraries.


def raised_in(package: str, error: Exception):
    """A function of a package that raises this error."""
    names = {"__name__": f"{package}.module", "error": error}
    exec("def function(*_):\n    raise error", names)
    return names["function"]


@pytest.mark.parametrize(
    ("package", "error"),
    [
        ("harvest", TypeError("a defect of ours")),
        ("analysis", ZeroDivisionError("a defect of ours")),
        ("transformers", MemoryError()),
        ("transformers", torch.OutOfMemoryError("CUDA out of memory")),
        ("transformers", InputError("a sentence already")),
    ],
)
def test_our_bugs_and_out_of_memory_errors_are_not_hidden(package, error):
    with pytest.raises(type(error)) as caught, explained("the model cannot be run"):
        raised_in(package, error)()
    assert caught.value is error


def test_errors_of_libraries_become_one_sentence_and_keep_their_cause():
    error = AttributeError("no such\n  attribute")
    with pytest.raises(InputError) as caught, explained("the model cannot be run"):
        raised_in("transformers", error)()
    assert str(caught.value) == "the model cannot be run: AttributeError: no such attribute"
    assert caught.value.__cause__ is error


def test_an_out_of_memory_error_on_a_cpu_is_recognized():
    error = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried")
    with pytest.raises(RuntimeError), explained("the model cannot be run"):
        raised_in("torch", error)()


def test_errors_of_our_code_inside_of_a_model_are_not_blamed_on_the_model(model):
    defect = raised_in("analysis", KeyError("a defect of ours"))
    with pytest.raises(KeyError, match="a defect of ours"):
        write_texts(model("bundled"), [7, 8, 9], Change(Site(1, "resid_pre"), defect, 1), 2)
