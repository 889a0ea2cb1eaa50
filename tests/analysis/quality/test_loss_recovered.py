"""The loss of a model if an activation is replaced, compared with transformers' modules and with known values."""

from itertools import islice

import numpy as np
import pytest
import torch
import transformers

from analysis.quality.loss_recovered import finite, loss_recovered, scores
from analysis.runs.remarks import remark_on_loss_recovered
from analysis.stats import SAMPLES, bootstrap_samples
from harvest.errors import InputError
from harvest.interventions.loss_recovered import losses
from harvest.model.language_model import LanguageModel
from harvest.request import HOOKS, INNER, Site
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.store import ActivationStore
from harvest.store_writer import StoreWriter
from harvest.text.documents import documents
from sae_jax.models.base import SAE
from sae_jax.models.registry import KINDS

TOKENS_WxT = np.random.default_rng(0).integers(0, 4096, (6, 12), dtype=np.int32)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.load(str(BUNDLED_MODEL), device="cpu")


@pytest.fixture(scope="module")
def raw_model():
    return transformers.GPT2LMHeadModel.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()


def damaged(rows_NxD: np.ndarray) -> np.ndarray:
    return 0.6 * rows_NxD + 0.2 * np.sin(np.arange(rows_NxD.shape[1]), dtype=np.float32)


def raw_logits(raw_model, tokens_WxT: np.ndarray, site: Site | None, first_position: int) -> np.ndarray:
    """Logits from a whole run of the model of transformers, with torch hooks on its modules."""
    block = raw_model.transformer.h[site.layer if site else 0]

    def put(x_WxTxD: torch.Tensor) -> torch.Tensor:
        x_WxTxD = x_WxTxD.clone()
        rows_NxD = x_WxTxD[:, first_position:].reshape(-1, x_WxTxD.shape[-1]).numpy()
        x_WxTxD[:, first_position:] = torch.from_numpy(damaged(rows_NxD)).view(x_WxTxD[:, first_position:].shape)
        return x_WxTxD

    def behind(_, args, out):
        return (put(out[0]), *out[1:]) if isinstance(out, tuple) else put(out)

    def from_resid_mid(block, args, out):
        mid = put(args[0] + block.attn(block.ln_1(args[0]))[0])
        whole = mid + block.mlp(block.ln_2(mid))
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    def in_front(_, args):
        return (put(args[0]), *args[1:])

    def of_three(part):
        """A hook that changes one part of the output of a matrix for queries, keys and values."""

        def change(_, args, joint):
            parts = list(joint.tensor_split(3, -1))
            parts[part] = put(parts[part])
            return torch.cat(parts, -1)

        return lambda: block.attn.c_attn.register_forward_hook(change)

    hooks = {
        "resid_pre": lambda: block.register_forward_pre_hook(in_front),
        "mlp_in": lambda: block.mlp.register_forward_pre_hook(in_front),
        "mlp_post": lambda: block.mlp.c_proj.register_forward_pre_hook(in_front),
        "z": lambda: block.attn.c_proj.register_forward_pre_hook(in_front),
        "q": of_three(0),
        "k": of_three(1),
        "v": of_three(2),
        "attn_out": lambda: block.attn.register_forward_hook(behind),
        "resid_mid": lambda: block.register_forward_hook(from_resid_mid),
        "mlp_out": lambda: block.mlp.register_forward_hook(behind),
        "resid_post": lambda: block.register_forward_hook(behind),
        "embed": lambda: raw_model.transformer.wte.register_forward_hook(behind),
        "final": lambda: raw_model.transformer.ln_f.register_forward_hook(behind),
    }
    handle = hooks[site.hook]() if site else None
    with torch.inference_mode():
        logits = raw_model(torch.from_numpy(tokens_WxT).long(), use_cache=False).logits
    if handle:
        handle.remove()
    return logits.double().numpy()


def by_hand(logits_WxTxV, clean_WxTxV, tokens_WxT, first_position) -> tuple[np.ndarray, np.ndarray]:
    """(CE, KL) of each window, computed in float64 one token at a time."""
    ce_W, kl_W = [], []
    for logits_TxV, clean_TxV, tokens_T in zip(logits_WxTxV, clean_WxTxV, tokens_WxT, strict=True):
        p_TxV, q_TxV = (np.exp(x - x.max(1, keepdims=True)) for x in (clean_TxV, logits_TxV))
        p_TxV, q_TxV = p_TxV / p_TxV.sum(1, keepdims=True), q_TxV / q_TxV.sum(1, keepdims=True)
        positions = range(first_position, len(tokens_T))
        ce_W.append(np.mean([-np.log(q_TxV[t, tokens_T[t + 1]]) for t in positions[:-1]]))
        kl_W.append(np.mean([np.sum(p_TxV[t] * np.log(p_TxV[t] / q_TxV[t])) for t in positions]))
    return np.array(ce_W), np.array(kl_W)


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("hook", HOOKS)
def test_running_from_a_hook_equals_a_whole_run_with_the_replacement(model, raw_model, hook, layer):
    site, first = Site(layer, hook), layer % 2  # with and without the first position
    clean, replaced = losses(model, TOKENS_WxT, site, {"damaged": damaged, "same": lambda x: x}, first)
    clean_WxTxV = raw_logits(raw_model, TOKENS_WxT, None, first)
    expected = by_hand(raw_logits(raw_model, TOKENS_WxT, site, first), clean_WxTxV, TOKENS_WxT, first)
    np.testing.assert_allclose(replaced["damaged"], expected, rtol=1e-4, atol=1e-4)
    assert (replaced["damaged"].kl_W > (3e-4 if hook in INNER else 3e-3)).all()
    unchanged = by_hand(clean_WxTxV, clean_WxTxV, TOKENS_WxT, first)
    np.testing.assert_allclose(clean, unchanged, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(replaced["same"], unchanged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("hook", "again"), [("resid_pre", [2, 3]), ("mlp_out", [2, 3]), ("resid_post", [3])])
def test_twelve_replacements_cost_one_prefix_and_twelve_suffixes(model, hook, again):
    blocks = [block.original_component for block in model.bridge.blocks]
    parts = [*blocks, blocks[2].mlp.original_component]  # a module of transformers
    calls = [0] * len(parts)

    def count(part: int) -> None:
        calls[part] += 1

    handles = [p.register_forward_pre_hook(lambda *_, i=i: count(i)) for i, p in enumerate(parts)]
    losses(model, TOKENS_WxT, Site(2, hook), {str(i): damaged for i in range(12)})
    for handle in handles:
        handle.remove()
    suffixes = 12 + 1  # and one in the first batch, which checks that the model is reproduced
    assert calls[:4] == [1 + suffixes * (layer in again) for layer in range(4)]
    assert calls[4] == (1 + suffixes if hook == "resid_pre" else 1)


def test_loss_recovered_does_not_change_the_model(model, raw_model):
    for hook in HOOKS:
        losses(model, TOKENS_WxT, Site(1, hook), {"damaged": damaged})
    with pytest.raises(InputError, match=r"bad: its reconstruction at blocks\.1\.hook_mlp_out is not finite"):
        losses(model, TOKENS_WxT, Site(1, "mlp_out"), {"bad": lambda x: x * np.nan})
    with torch.inference_mode():
        found = model.bridge(torch.from_numpy(TOKENS_WxT).long()).numpy()
    np.testing.assert_allclose(found, raw_logits(raw_model, TOKENS_WxT, None, 0), rtol=1e-4, atol=1e-3)


def other_model(tmp_path, config) -> LanguageModel:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).eval().save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(BUNDLED_MODEL).save_pretrained(tmp_path)
    return LanguageModel.load(str(tmp_path), device="cpu")


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL |= {"vocab_size": 4096, "initializer_range": 0.3}


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
        transformers.GPTNeoXConfig(**SMALL, use_parallel_residual=True),
        transformers.Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
    ],
    ids=lambda config: config.model_type,
)
def test_other_architectures(tmp_path, config):
    model = other_model(tmp_path, config)
    tokens = torch.from_numpy(TOKENS_WxT).long()
    clean = model.bridge(tokens).detach()
    for hook in HOOKS:
        site = Site(1, hook)
        if config.model_type == "gpt_neox" and hook == "resid_mid":
            with pytest.raises(InputError, match="resid_mid: .* has no such point in layer 1"):
                losses(model, TOKENS_WxT, site, {"damaged": damaged})
            continue
        _, replaced = losses(model, TOKENS_WxT, site, {"damaged": damaged}, 0)

        def put(x, hook):
            return torch.from_numpy(damaged(x.detach().flatten(2).flatten(0, 1).numpy())).view(x.shape)

        hooks = [(site.hook_name, put)]
        if hook == "resid_mid":  # TransformerLens' point is only the MLP's input, so mid + MLP(mid) is added up here
            with model.bridge.hooks(fwd_hooks=hooks):
                _, seen = model.bridge.run_with_cache(tokens)
            whole = seen["blocks.1.hook_resid_mid"] + seen["blocks.1.hook_mlp_out"]
            hooks = [("blocks.1.hook_resid_post", lambda x, hook, whole=whole: whole)]
        logits = model.bridge.run_with_hooks(tokens, fwd_hooks=hooks).detach()
        expected = by_hand(logits.double().numpy(), clean.double().numpy(), TOKENS_WxT, 0)
        np.testing.assert_allclose(replaced["damaged"], expected, rtol=1e-3, atol=1e-4)
        assert (replaced["damaged"].kl_W > (1e-4 if hook in INNER else 1e-3)).all()


# Loss recovered of dictionaries on a store.


@pytest.fixture(scope="module")
def text_WxT(model) -> np.ndarray:
    """Windows of a text that the model predicts better than with ablated activations."""
    texts = islice(documents(str(BUNDLED_CORPUS)), 13)
    return np.array([model.tokenizer(text)["input_ids"][:12] for text in texts], np.int32)


def make_store(directory, model: LanguageModel, site: Site, tokens_WxT: np.ndarray | None = None) -> ActivationStore:
    """A store with windows of these tokens, or of random ones, in documents of one to three windows."""
    facts = {"layer": site.layer, "hook": site.hook, "hook_name": site.hook_name}
    writer = StoreWriter(directory, {**facts, "seq_len": 12, "keep_first_position": False})
    documents_W = np.array([0, 1, 1, 2, 2, 2])
    for split, shift in (("train", 0), ("held_out", 7)):
        of_WxT = (TOKENS_WxT + shift) % 4096 if tokens_WxT is None else tokens_WxT[shift : shift + 6]
        x_WxTxD = model.activations(of_WxT, [site])[site]
        writer.add_shard(split, 0, x_WxTxD[:, 1:].reshape(-1, model.d_model), of_WxT, documents_W)
    return writer.finish()


def known_dictionaries(store: ActivationStore) -> dict[str, SAE]:
    d = store.d_model
    zeros_FxD, zeros_F, one_DxD = np.zeros((2 * d, d)), np.zeros(2 * d), np.eye(d)
    plus_minus_FxD = np.concatenate([one_DxD, -one_DxD])  # x = relu(x) − relu(−x)
    tensors = {
        "zero": (zeros_FxD, np.zeros(d)),
        "mean": (zeros_FxD, store.mean),
        "identity": (plus_minus_FxD, np.zeros(d)),
    }
    return {
        name: KINDS["relu"]({"W_encT": W, "W_dec": W, "b_enc": zeros_F, "b_dec": b}) for name, (W, b) in tensors.items()
    }


@pytest.mark.parametrize("hook", ["resid_pre", "mlp_out"])
def test_dictionaries_whose_loss_is_known_beforehand(model, text_WxT, tmp_path, hook):
    store = make_store(tmp_path, model, Site(2, hook), text_WxT)
    found = loss_recovered(model, store, known_dictionaries(store), np.arange(6))
    metrics = {name: facts["metrics"] for name, facts in found.items()}
    assert metrics["zero"]["ce_recovered"] == metrics["zero"]["kl_recovered"] == 0
    assert metrics["zero"]["ce_sae"] == metrics["zero"]["ce_zero"]
    assert metrics["mean"]["ce_sae"] == pytest.approx(metrics["mean"]["ce_mean"], abs=1e-5)
    assert metrics["identity"]["ce_recovered"] == pytest.approx(1, abs=1e-4)
    assert metrics["identity"]["kl_recovered"] == pytest.approx(1, abs=1e-4)
    assert metrics["identity"]["ce_sae"] == pytest.approx(metrics["zero"]["ce_clean"], abs=1e-5)


def test_intervals_are_over_documents_and_ratios_are_of_sums(model, text_WxT, tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.quality.loss_recovered.ratio_interval", lambda of_G, lost_G: (of_G, lost_G))
    store = make_store(tmp_path, model, Site(2, "resid_post"), text_WxT)
    (sae,) = [sae for name, sae in known_dictionaries(store).items() if name == "mean"]
    found = loss_recovered(model, store, {"sae": sae}, np.arange(6))["sae"]
    windows = store.held_out.windows
    replaced = {"sae": lambda x: np.broadcast_to(store.mean, x.shape), "zero": np.zeros_like}
    clean, lost = losses(model, windows, Site(2, "resid_post"), replaced)
    of_document = {0: [0], 1: [1, 2], 2: [3, 4, 5]}
    zero_G, own_G, whole_G = (
        np.array([x.ce_W[windows].sum() for windows in of_document.values()])
        for x in (lost["zero"], lost["sae"], clean)
    )
    expected = {"ce_recovered": (zero_G - own_G, zero_G - whole_G), "ce_sae": (own_G, [1, 2, 3])}
    for name, parts in expected.items():
        np.testing.assert_allclose(found["intervals"][name], parts, rtol=1e-3)


def test_there_is_no_interval_for_few_documents(model, text_WxT, tmp_path):
    store = make_store(tmp_path, model, Site(2, "resid_post"), text_WxT)
    found = loss_recovered(model, store, known_dictionaries(store), np.arange(6))
    assert all(set(of["intervals"].values()) == {None} for of in found.values())


def test_documents_are_drawn_with_replacement_and_equal_probability():
    draws_SxG = bootstrap_samples(50)
    assert draws_SxG.shape == (SAMPLES, 50) and (draws_SxG.sum(1) == 50).all()
    assert draws_SxG.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # the variance of a multinomial count
    np.testing.assert_allclose(draws_SxG.mean(0), 1, atol=0.1)


def test_the_definitions():
    sums = {"ce_clean": 6.0, "ce_sae": 8.0, "ce_zero": 16.0, "ce_mean": 14.0, "kl_sae": 1.0, "kl_zero": 4.0, "count": 2}
    found = scores(sums)
    assert (found["ce_clean"], found["ce_recovered"], found["kl_recovered"]) == (3, 0.8, 0.75)


@pytest.mark.parametrize(("zero", "clean"), [(3.0, 4.0), (4.0, 4.0)])
def test_loss_recovered_is_undefined_with_a_reason_if_zero_ablation_costs_nothing(zero, clean):
    sums = {
        "ce_clean": clean,
        "ce_sae": 3.5,
        "ce_zero": zero,
        "ce_mean": 4.0,
        "kl_sae": 1.0,
        "kl_zero": 0.0,
        "count": 1,
    }
    found = {name: finite(value) for name, value in scores(sums).items()}
    assert found["ce_recovered"] is found["kl_recovered"] is None and found["ce_sae"] == 3.5
    assert f"cross-entropy is no worse ({zero:.4f}) than unchanged ({clean:.4f})" in remark_on_loss_recovered(found)
    assert remark_on_loss_recovered(found | {"ce_recovered": 0.5}).startswith("KL recovered is undefined")
    both = found | {"ce_recovered": 0.5, "kl_recovered": 0.5}
    assert remark_on_loss_recovered(both) == remark_on_loss_recovered({}) == ""
    assert "above 1" in remark_on_loss_recovered(both | {"ce_recovered": 1.01})


def test_loss_recovered_is_undefined_if_zero_ablation_improves_the_model(model, tmp_path):
    store = make_store(tmp_path, model, Site(2, "resid_pre"))  # random tokens
    found = loss_recovered(model, store, known_dictionaries(store), np.arange(6))
    for of in found.values():
        assert of["metrics"]["ce_zero"] < of["metrics"]["ce_clean"] and of["metrics"]["ce_recovered"] is None
        assert of["intervals"]["ce_recovered"] is None
        assert of["metrics"]["kl_recovered"] is not None and remark_on_loss_recovered(of["metrics"])
