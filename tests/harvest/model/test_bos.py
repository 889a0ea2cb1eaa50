"""Models that were trained behind a token that begins a text (BOS), next to plain transformers."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import write_model

import analysis
import sae_jax
from harvest.capture import harvest
from harvest.errors import InputError
from harvest.interventions.loss_recovered import losses
from harvest.interventions.steering import Change, surprise, write_texts
from harvest.model.language_model import LanguageModel
from harvest.request import HOOKS, HarvestRequest, Site
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text.documents import Reading, documents
from sae_jax.calibration import metric_windows, spread_windows

FAMILIES = ["llama", "gemma2"]
TOKENS_WxT = np.random.default_rng(0).integers(5, 4096, (4, 11), dtype=np.int32)


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request, tmp_path_factory):
    directory = write_model(request.param, tmp_path_factory.mktemp("model"), bos=True)
    learn(directory)
    return directory


def learn(directory) -> None:
    """Train the model for a few steps, because a random model does not lose by an ablation."""
    network = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    bos, windows = tokenizer("")["input_ids"], []
    for text in islice(documents(str(BUNDLED_CORPUS), Reading()), 400):
        tokens = tokenizer(text)["input_ids"][1:]
        windows += [bos + tokens[start : start + 11] for start in range(0, len(tokens) - 10, 11)]
    every = torch.tensor(windows)
    optimizer, draw = torch.optim.Adam(network.parameters(), 3e-2), torch.Generator().manual_seed(0)
    for _ in range(60):
        batch = every[torch.randint(len(every), (128,), generator=draw)]
        optimizer.zero_grad()
        network(batch, labels=batch).loss.backward()
        optimizer.step()
    network.save_pretrained(directory)


@pytest.fixture(scope="module")
def model(directory):
    return LanguageModel.load(str(directory), device="cpu")


@pytest.fixture(scope="module")
def plain(directory):
    """(the model in plain transformers, its BOS)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return transformers.AutoModelForCausalLM.from_pretrained(directory).eval(), tokenizer("a")["input_ids"][0]


def behind(bos: int, tokens_WxT: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.insert(tokens_WxT.astype(np.int64), 0, bos, axis=1))


def logits_of(plain, tokens_WxT: np.ndarray) -> torch.Tensor:
    """Logits at the tokens, behind BOS."""
    network, bos = plain
    with torch.no_grad():
        return network(behind(bos, tokens_WxT)).logits[:, 1:].float()


def test_bos_is_what_the_tokenizer_puts_there(model, plain):
    assert model.bos == (plain[1],)
    assert LanguageModel.load(str(BUNDLED_MODEL), device="cpu").bos == ()
    assert LanguageModel.load(str(BUNDLED_MODEL), device="cpu", bos="on").bos == (model.tokenizer.bos_token_id,)


def test_rows_are_those_of_transformers_behind_bos(model, plain):
    network, bos = plain
    with torch.inference_mode():
        states = network(behind(bos, TOKENS_WxT), output_hidden_states=True).hidden_states
    for layer in (0, 2):
        found = model.activations(TOKENS_WxT, [Site(layer, "resid_pre")])[Site(layer, "resid_pre")]
        np.testing.assert_allclose(found, states[layer][:, 1:].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hook", HOOKS)
def test_losses_are_those_of_transformers_behind_bos(model, plain, hook):
    logp = logits_of(plain, TOKENS_WxT).log_softmax(-1)[:, :-1]
    expected = -logp.gather(-1, torch.from_numpy(TOKENS_WxT[:, 1:, None].astype(np.int64)))[..., 0].mean(1)
    clean, replaced = losses(model, TOKENS_WxT, Site(1, hook), {"itself": lambda x: x, "zero": np.zeros_like}, 0)
    np.testing.assert_allclose(clean.ce_W, expected, rtol=1e-4)
    np.testing.assert_allclose(replaced["itself"].ce_W, expected, rtol=1e-4)
    assert np.abs(replaced["zero"].ce_W - expected.numpy()).max() > 1e-3


def test_texts_are_written_behind_bos(model, plain):
    network, bos = plain
    prompt_T = TOKENS_WxT[0, :4].tolist()
    written = write_texts(model, prompt_T, Change(Site(1, "resid_pre"), lambda x: x, 0), 5).tokens_SxN[0]
    tokens_T = list(prompt_T)
    for _ in range(5):
        logits_V = logits_of(plain, np.array([tokens_T]))[0, -1]
        logits_V[model.tokenizer.eos_token_id] = -torch.inf
        tokens_T.append(int(logits_V.argmax()))
    assert written.tolist() == tokens_T[4:]
    logp = logits_of(plain, np.array([tokens_T]))[0].log_softmax(-1)
    expected = [-float(logp[t - 1, tokens_T[t]]) for t in range(4, 9)]
    np.testing.assert_allclose(surprise(model, prompt_T, np.array([tokens_T[4:]]))[0], expected, rtol=1e-4)


def test_bos_takes_one_token_of_each_window_and_is_never_a_row(directory, plain, tmp_path):
    request = HarvestRequest(model_name=str(directory), dataset="bundled", layer=1, n_samples=30, seq_len=9)
    (store,) = harvest(request, tmp_path).values()
    windows_WxT = store.train.windows
    assert windows_WxT.shape[1] == 8 and len(store.train) == windows_WxT.size
    assert store.manifest["bos"] == [plain[1]]
    with torch.inference_mode():
        state = plain[0](behind(plain[1], windows_WxT), output_hidden_states=True).hidden_states[1][:, 1:]
    found = store.train.read(0, len(store.train)).reshape(state.shape)
    np.testing.assert_allclose(found, state.numpy(), rtol=1e-2, atol=1e-2)
    with pytest.raises(InputError, match="--keep-first-position has no effect on windows behind BOS"):
        harvest(HarvestRequest(**request.to_json() | {"keep_first_position": True}), tmp_path)
    (without,) = harvest(HarvestRequest(**request.to_json() | {"bos": "off"}), tmp_path).values()
    assert "bos" not in without.manifest and without.train.windows.shape[1] == 9
    assert len(without.train) == len(without.train.windows) * 8


def test_results_agree_with_plain_torch_on_the_exported_weights(directory, plain, tmp_path):
    """Explained variance and CE recovered from nothing but transformers, safetensors and the windows of the store."""
    settings = {"model_name": str(directory), "dataset": str(BUNDLED_CORPUS), "layer": 1, "n_samples": 400}
    settings |= {"seq_len": 12, "activation": ["topk", "jump_relu"], "k": 8, "target_l0": 8, "hidden_dim": 64}
    settings |= {"run_dir": tmp_path / "run", "cache_dir": tmp_path / "cache", "epochs": 2, "snapshots": 0}
    run = sae_jax.train_population(**settings, ce_windows=40, store_dtype="float32", quiet=True)
    store = run.store(run.request.sites[0], tmp_path / "cache")
    network, bos = plain
    used_W = metric_windows(store.held_out)
    for name in run:
        member = run.path / "members" / name
        cfg, tensors = json.loads((member / "cfg.json").read_text()), load_file(member / "sae_weights.safetensors")
        assert cfg["metadata"]["prepend_bos"] is True and cfg["metadata"]["context_size"] == 12

        def reconstructed(x, cfg=cfg, tensors=tensors):
            z = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
            if cfg["architecture"] == "topk":
                least = z.topk(cfg["k"]).values[..., -1:]
                features = torch.where(z >= least, z, 0).relu()
            else:
                features = torch.where(z > tensors["threshold"], z, 0).relu()
            return features @ tensors["W_dec"] + tensors["b_dec"]

        def states(tokens_WxT):
            with torch.inference_mode():
                return network(behind(bos, tokens_WxT), output_hidden_states=True).hidden_states[1][:, 1:]

        x_NxD = states(store.held_out.windows[used_W]).flatten(0, 1)
        variance = 1 - (x_NxD - reconstructed(x_NxD)).square().sum() / (x_NxD - x_NxD.mean(0)).square().sum()
        metrics = run.members[name]["metrics"]
        assert metrics["explained_variance"] == pytest.approx(float(variance), abs=1e-3)

        windows_WxT = store.held_out.windows[spread_windows(used_W, 40)]
        ce = {}
        for what, change in {"clean": lambda x: x, "sae": reconstructed, "zero": torch.zeros_like}.items():

            def replace(block, args, kwargs, change=change):
                x = (args or (kwargs["hidden_states"],))[0]
                x = torch.cat([x[:, :1], change(x[:, 1:])], 1)
                return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

            handle = network.model.layers[1].register_forward_pre_hook(replace, with_kwargs=True)
            logp = logits_of(plain, windows_WxT)[:, :-1].log_softmax(-1)
            handle.remove()
            ce[what] = -float(logp.gather(-1, torch.from_numpy(windows_WxT[:, 1:, None]).long()).mean())
        assert ce["zero"] > ce["clean"] + 0.1, "the model has learned too little to compare the shares"
        recovered = (ce["zero"] - ce["sae"]) / (ce["zero"] - ce["clean"])
        assert metrics["ce_recovered"] == pytest.approx(recovered, rel=1e-3, abs=1e-3)


def test_analyses_work_behind_bos(directory, tmp_path):
    settings = {"model_name": str(directory), "dataset": "bundled", "layer": 1, "n_samples": 300, "seq_len": 12}
    settings |= {"activation": "topk", "k": 8, "hidden_dim": 64, "run_dir": tmp_path / "run", "snapshots": 0}
    run = sae_jax.train_population(**settings, cache_dir=tmp_path / "cache", epochs=1, ce_windows=0, quiet=True)
    (features,) = analysis.load_features(run, cache_dir=tmp_path / "cache", quiet=True).values()
    assert features.density_F.sum() == pytest.approx(8, rel=0.2)
    assert run.first_position == 0 and run.seq_len == 11
    sae = run["best"]
    assert sae.first_position == 1  # of a window with BOS
    tokens = run.language_model.bridge.to_tokens("The ships lay in the harbour.", prepend_bos=True)
    with sae_jax.spliced(run.language_model, sae) as splice:
        run.language_model.bridge(tokens)
    assert splice.features_WxPxF.shape[1] == tokens.shape[1] - 1
