"""Steering of the prompt and of generated tokens, with and without a cache; exact clamps; features that never fire."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import BUNDLED, environment, shared_cache
from rows import make_store
from transformers import AutoModelForCausalLM

import main
from analysis.cli import steer
from analysis.interventions import steering
from analysis.interventions.experiment import Experiment
from analysis.interventions.steering import Sampling, Steered, Texts, compute_steering, directions_for
from harvest.errors import InputError
from harvest.interventions.steering import Change, changing, draw, surprise, write_texts
from harvest.request import Site
from harvest.sources import BUNDLED_MODEL
from sae_jax.models.registry import KINDS

SITE = Site(2, "resid_pre")
SITES = (SITE, Site(1, "resid_mid"), Site(2, "mlp_out"), Site(1, "attn_out"), Site(3, "resid_post"))
F, SILENT = 24, 7


@pytest.fixture(scope="module")
def prompt_T(model):
    return model.tokenizer("I went for a walk and", add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def saes():
    """Dictionaries with random features, of which one never fires."""
    rng = np.random.default_rng(0)
    W_FxD = rng.standard_normal((F, 256)).astype(np.float32) / 16
    b_enc = np.where(np.arange(F) == SILENT, -1e6, 0).astype(np.float32)
    params = {"W_encT": W_FxD, "W_dec": W_FxD, "b_enc": b_enc, "b_dec": np.full(256, 0.1, np.float32)}
    return {
        "relu": KINDS["relu"](params),
        "topk": KINDS["topk"](params, {"k": np.int32(5)}, "k", 5),
        "jump_relu": KINDS["jump_relu"](params | {"threshold": np.full(F, 0.3, np.float32)}),
    }


def pushed(site: Site, size: float, first: int = 1) -> Change:
    d_D = np.random.default_rng(1).standard_normal(256).astype(np.float32)
    return Change(site, lambda x_NxD: x_NxD + size * d_D, first)


def itself(site: Site) -> Change:
    return Change(site, lambda x_NxD: x_NxD, 1)


def test_unsteered_text_equals_that_of_the_model(model, prompt_T):
    written = write_texts(model, prompt_T, itself(SITE), 30)
    expected = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).generate(
        torch.tensor([prompt_T]), max_new_tokens=30, do_sample=False, pad_token_id=0, suppress_tokens=[0]
    )
    assert written.tokens_SxN[0].tolist() == expected[0, len(prompt_T) :].tolist()


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.hook_name)
@pytest.mark.parametrize("written_only", [False, True])
def test_with_a_cache_it_writes_the_same_as_without(model, prompt_T, site, written_only):
    change = pushed(site, 0.5, len(prompt_T) if written_only else 1)
    cached = write_texts(model, prompt_T, change, 25, watched=[5, 6])
    whole = write_texts(model, prompt_T, change, 25, watched=[5, 6], cached=False)
    assert np.array_equal(cached.tokens_SxN, whole.tokens_SxN)
    np.testing.assert_allclose(cached.watched_SxN, whole.watched_SxN, rtol=1e-3, atol=1e-7)
    assert not np.array_equal(cached.tokens_SxN, write_texts(model, prompt_T, itself(site), 25).tokens_SxN)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.hook_name)
def test_every_token_that_it_writes_is_steered(model, prompt_T, site):
    """The activation at each generated token is the changed one, and each token is changed once."""
    seen = []

    def replace(x_NxD):
        seen.append(x_NxD.copy())
        return x_NxD + 1

    written = write_texts(model, prompt_T, Change(site, replace, len(prompt_T)), 6)
    seen.pop(1)  # from the check of the cache
    assert [len(x_NxD) for x_NxD in seen] == [1] * 5  # the model never reads the sixth token
    read = []
    text = model.token_ids(np.array([prompt_T + written.tokens_SxN[0, :5].tolist()]))

    def shifted(x_SxTxD):
        read.append(x_SxTxD[0, len(prompt_T) :].clone().numpy())
        at_TxD = torch.zeros_like(x_SxTxD)
        at_TxD[:, len(prompt_T) :] = 1
        return x_SxTxD + at_TxD

    with torch.inference_mode(), changing(model, site, shifted):
        logits = model.bridge(text, return_type="logits", use_cache=False)
    np.testing.assert_allclose(np.concatenate(seen), read[0], atol=2e-3)
    assert logits[0, -1, 1:].argmax() + 1 == written.tokens_SxN[0, 5]


def test_at_resid_mid_the_residual_stream_itself_is_changed(model, prompt_T):
    site, found = Site(1, "resid_mid"), {}
    hooks = [
        (f"blocks.1.hook_{name}", lambda x, hook, name=name: found.update({name: x.clone()}))
        for name in ("mlp_out", "resid_post", "resid_mid")
    ]
    half = changing(model, site, lambda x: torch.full_like(x, 0.5))
    with torch.inference_mode(), half, model.bridge.hooks(fwd_hooks=hooks):
        model.bridge(model.token_ids(np.array([prompt_T])), return_type=None, use_cache=False)
    for x in (found["resid_mid"], found["resid_post"] - found["mlp_out"]):
        torch.testing.assert_close(x, torch.full_like(x, 0.5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.hook_name)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_strength_0_is_the_unsteered_model_token_for_token(model, prompt_T, saes, site, temperature):
    directions = directions_for(saes["topk"], 3, 2.5, "add", {"random": np.ones(256)})
    how = {"temperature": temperature, "top_p": 0.9, "seed": 4, "watched": [9]}
    prompt_SxT = np.tile(prompt_T, (3, 1))
    plain = write_texts(model, prompt_SxT, itself(site), 30, **how)
    for direction in directions.values():
        zero = write_texts(model, prompt_SxT, Change(site, direction(0.0).replace, 1), 30, **how)
        assert np.array_equal(zero.tokens_SxN, plain.tokens_SxN)
        assert np.array_equal(zero.watched_SxN, plain.watched_SxN)
    assert (len({tuple(row) for row in plain.tokens_SxN}) == 3) == (temperature > 0)


@pytest.mark.parametrize("kind", ["relu", "topk", "jump_relu"])
@pytest.mark.parametrize("mode", ["add", "clamp", "ablate"])
def test_changes_are_decode_and_error_exactly(saes, kind, mode):
    sae, i, maximum = saes[kind], 3, 2.5
    x_NxD = np.random.default_rng(2).standard_normal((50, 256)).astype(np.float32)
    f_NxF, W_FxD, b_D = (np.asarray(v, np.float64) for v in (sae.encode(x_NxD), sae.W_dec[...], sae.b_dec[...]))
    error_NxD = x_NxD - (f_NxF @ W_FxD + b_D)
    steered_NxF = f_NxF.copy()
    steered_NxF[:, i] = {"add": f_NxF[:, i] + 5, "clamp": 5.0, "ablate": 0.0}[mode]
    expected_NxD = steered_NxF @ W_FxD + b_D + error_NxD
    direction = directions_for(sae, i, maximum, mode, {})["feature 3"](2.0)
    np.testing.assert_allclose(direction.replace(x_NxD), expected_NxD, atol=1e-5)


def test_ablating_a_feature_that_never_fires_changes_nothing(model, prompt_T, saes):
    for sae in saes.values():
        ablated = directions_for(sae, SILENT, 0.0, "ablate", {})[f"feature {SILENT}"](0.0)
        tokens, rows = model.token_ids(np.array([prompt_T])), []

        def replace(x, ablated=ablated, rows=rows):
            rows.append(x)
            return torch.from_numpy(ablated.replace(x[0].numpy()))[None]

        with torch.inference_mode():
            with changing(model, SITE, lambda x: x):
                plain = model.bridge(tokens, return_type="logits", use_cache=False)
            with changing(model, SITE, replace):
                assert torch.equal(model.bridge(tokens, return_type="logits", use_cache=False), plain)
        assert rows
    with pytest.raises(InputError, match="never fires"):
        directions_for(saes["relu"], SILENT, 0.0, "add", {})


def test_baseline_directions_have_the_norm_of_the_feature(saes):
    others = {"random direction": steering.random_direction(256, 0), "means": np.full(256, 40.0)}
    directions = directions_for(saes["relu"], 3, 2.5, "add", others)
    x_NxD = np.zeros((1, 256), np.float32)
    norms = [np.linalg.norm(direction(2.0).replace(x_NxD)) for direction in directions.values()]
    assert len(norms) == 3 and norms == pytest.approx([5 * np.linalg.norm(saes["relu"].W_dec[3])] * 3, rel=1e-5)


@pytest.mark.parametrize(
    "top_p, expected", [(0.5, [0, 1, 0, 0]), (0.6, [0, 0.625, 0.375, 0]), (1.0, [0.1, 0.5, 0.3, 0.1])]
)
def test_top_p_keeps_the_smallest_set_of_likely_tokens(top_p, expected):
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log().repeat(4000, 1)
    drawn = draw(logits, 1.0, top_p, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, expected, atol=0.03)


def test_surprise_equals_the_loss_of_the_model(model, prompt_T):
    tokens_SxN = write_texts(model, np.tile(prompt_T, (2, 1)), pushed(SITE, 0.5), 12, temperature=1.0).tokens_SxN
    for tokens_N, found_N in zip(tokens_SxN, surprise(model, prompt_T, tokens_SxN), strict=True):
        ids = torch.tensor([prompt_T + tokens_N.tolist()])
        labels = ids.clone()
        labels[:, : len(prompt_T)] = -100
        loss = model.bridge.original_model(input_ids=ids, labels=labels).loss
        assert found_N.mean() == pytest.approx(loss.item(), rel=1e-4)


def test_a_feature_with_negative_activations_is_steered_by_the_most_negative(saes):
    sae = saes["relu"]
    direction = steering.directions_for(sae, 5, -3.0, "add", {})["feature 5"]
    x_NxD = np.zeros((2, sae.W_dec.shape[1]), np.float32)
    np.testing.assert_allclose(direction(2.0).replace(x_NxD), np.tile(-6 * np.asarray(sae.W_dec[5]), (2, 1)), rtol=1e-6)


def test_windows_with_a_phrase_contain_whole_words_without_its_article(tmp_path):
    store, texts = make_store(tmp_path / "store", windows=5, shards=1), ["the Sea is", "a sea", "seaside", "land"]
    of_window = dict(zip(map(bytes, store.train.windows), texts, strict=True))
    tokenizer = SimpleNamespace(batch_decode=lambda windows: [of_window[bytes(tokens_T)] for tokens_T in windows])
    found_D = steering.difference_in_means(store, tokenizer, "the sea")
    x_WxD = store.train.read(0, len(store.train)).reshape(4, -1, store.d_model).mean(1, dtype=np.float64)
    np.testing.assert_allclose(found_D, x_WxD[:2].mean(0) - x_WxD[2:].mean(0), rtol=1e-9, atol=1e-12)
    assert steering.difference_in_means(store, tokenizer, "volcano") is None


def test_the_best_strength_is_the_strongest_fluent_one():
    def texts(strength, probability, perplexity, distinct=0.8):
        return Texts(strength, (("",),), probability, perplexity, distinct)

    repeats = texts(3, 0.8, 5, distinct=0.3)  # likely to the model, but repetitive
    curve = (texts(1, 0.2, 15), texts(2, 0.3, 20), repeats, texts(4, 0.9, 21))
    steered = Steered("add", ("p",), (), {"unsteered": texts(0, 0.1, 10)}, {"a": curve, "b": (texts(1, 0.1, 10),)})
    assert steered.best("a").strength == 2 and steered.best("b") is None


def test_the_verdict_compares_the_best_strengths_of_another_seed():
    def steered(plain: float, **directions: float) -> Steered:
        def texts(strength: float, probability: float) -> Texts:
            return Texts(strength, (("",),), probability, 10.0, 0.8)

        curves = {name: (texts(1, probability),) for name, probability in directions.items()}
        return Steered("add", ("p", "q"), (), {"unsteered": texts(0, plain)}, curves)

    def verdict(first: Steered, **again: float) -> str:
        rerun = {name: steered(0.1, **{name: probability}) for name, probability in again.items()}
        return Experiment(None, "m", 5, 1.0, None, Sampling(), first, rerun).verdict()

    first = steered(0.1, feature=0.3, random=0.2, means=0.05)
    assert verdict(first, feature=0.25, random=0.4) == (
        "verdict on 8 texts of another seed for each direction, without intervals: feature (probability 0.25000 at its "
        "best strength, 0.10000 unsteered) does not beat the random (0.40000) and beats the means (no gain)"
    )
    assert "feature does not steer: probability 0.09000" in verdict(first, feature=0.09, random=0.2)
    assert "no best strength" in verdict(steered(0.1, feature=0.1, random=0.2), random=0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cache = shared_cache(tmp_path_factory)
    path = tmp_path_factory.mktemp("runs") / "one"
    argv = [*BUNDLED, "--n-samples", "400", "--seq-len", "20", "--activation", "topk", "--hidden-dim", "48", "--k", "8"]
    argv += ["--layer", "2", "--epochs", "1", "--seed", "0", "1", "--run-dir", str(path), "--cache-dir", str(cache)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(cache).items():
            patch.setenv(name, value)
        assert main.run_as_command([*argv, "--quiet", "--ce-windows", "0"]) == 0
    return path, cache


def test_from_a_concept_to_tables_figure_and_json(run, capsys, tmp_path):
    path, cache = run
    member = sorted(p.name for p in (path / "members").iterdir())[0]
    argv = [str(path), "--member", member, "--concept", "night", "--sweep", "--strengths", "0", "0.5", "--seed", "3"]
    argv += ["--max-new-tokens", "12", "--json", str(tmp_path / "new" / "s.json"), "--cache-dir", str(cache)]
    steer.run(argv)
    out, found = capsys.readouterr().out, json.loads((tmp_path / "new" / "s.json").read_text())
    assert found["watched"] == [" night"] and len(found["output_scores"]) > 1
    assert found["feature"] == int(max(found["output_scores"], key=found["output_scores"].get))
    assert set(found["directions"]) == {f"feature {found['feature']}", "random direction", "difference in means"}
    assert set(found["plain"]) == {"unsteered", "named in the prompt"}
    for curve in found["directions"].values():
        assert curve[0] == found["plain"]["unsteered"] and curve[1]["texts"] != curve[0]["texts"]
    assert re.search(rf"\nverdict.*: feature {found['feature']} ", out)
    assert f"{found['directions']['difference in means'][1]['probability']:.5f}" in out and "best strength of" in out
    assert (path / "figures" / f"steer-{member}-{found['feature']}.png").stat().st_size > 10_000

    # The figures of the best strength come from other texts than those that it was chosen by: from the next seed.
    assert found["rerun"] and set(found["rerun"]) <= set(found["directions"])
    direction = f"feature {found['feature']}"
    other = [
        "--member",
        member,
        "--feature",
        str(found["feature"]),
        "--words",
        "night",
        "--strength",
        "0.5",
        "--seed",
        "4",
    ]
    steer.run([str(path), *other, *argv[argv.index("--max-new-tokens") : -3], str(tmp_path / "o.json"), *argv[-2:]])
    assert "tokens'" in capsys.readouterr().out
    expected = json.loads((tmp_path / "o.json").read_text())
    assert found["rerun"][direction]["directions"][direction] == expected["directions"][direction]
    assert found["rerun"][direction]["plain"]["unsteered"] == expected["plain"]["unsteered"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--feature", "3"], "--member is missing"),
        (["--feature", "3", "--mode", "clamp", "--strength", "0"], "use --mode ablate for that, or --mode add"),
        (["--feature", "3", "--mode", "ablate", "--strength", "2"], "leave --strength and --sweep out"),
        (["--feature", "3", "--concept", "sea"], "give only one of the two flags"),
        ([], "the feature to steer by is missing: give --feature or --concept"),
        (["--feature", "3", "--strengths", "2"], "needs --sweep"),
        (["--feature", "3", "--seed", "-1"], "--seed -1: must be a whole number, 0 to"),
        (["--feature", "3", "--temperature", "0", "--samples", "2"], "--samples 2: must be 1"),
        (["--feature", "48", "--member", "FIRST"], "between 0 and 47"),
        (["--feature", "3", "--member", "FIRST", "--max-new-tokens", "125"], "at most 12"),
        (["--feature", "3", "--member", "FIRST", "--prompt", "long " * 300], "tokens, but the model takes 128: give a"),
        (["--feature", "3", "--prompt", "a ship", " "], "--prompt: an empty text"),
        (["--concept", "qjxqjx", "--member", "FIRST"], "no feature detects the concept"),
    ],
)
def test_invalid_requests_are_refused(run, argv, message):
    path, cache = run
    first = sorted(p.name for p in (path / "members").iterdir())[0]
    with pytest.raises(InputError, match=message):
        main.main(["steer", str(path), "--cache-dir", str(cache), *(first if a == "FIRST" else a for a in argv)])


def test_perplexity_is_measured_after_the_plain_prompt(model):
    sampling = Sampling(prompt=("A man came", "The ship"), max_new_tokens=8, temperature=0)
    found = compute_steering(model, SITE, {}, "add", (), [7], sampling, 1, "the sea")
    assert found.plain["unsteered"].texts != found.plain["named in the prompt"].texts
    ids = [model.tokenizer(p, add_special_tokens=False)["input_ids"] for p in sampling.prompt]
    losses = [surprise(model, p_T, write_texts(model, p_T, itself(SITE), 8).tokens_SxN) for p_T in ids]
    assert found.plain["unsteered"].perplexity == pytest.approx(np.exp(np.mean(losses)))
