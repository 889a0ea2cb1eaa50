"""A harvest of the bundled model: its values, its held-out documents, and interruptions, which change nothing."""

import dataclasses
import errno
import gc
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from command_line import ROOT
from filelock import FileLock
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from harvest import rehearsal
from harvest.capture import harvest
from harvest.errors import InputError
from harvest.identity import difference, identity, matching_store
from harvest.model.language_model import LanguageModel
from harvest.request import POINTS, STREAMS, HarvestRequest, Site
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.store import ActivationStore
from sae_jax.training.loop import store_facts

BUNDLED = {"model_name": "bundled", "dataset": "bundled", "max_norm_ratio": 0}  # 0: the model runs only on batches
SMALL = HarvestRequest(**BUNDLED, layer=2, n_samples=800)
ONE_BATCH = 1  # bytes of a shard, which has at least one batch
HARVEST_IN_ITS_OWN_PROCESS = """
import json, sys
from pathlib import Path
from harvest.capture import harvest
from harvest.request import HarvestRequest
say = lambda text: print(text, flush=True)
harvest(HarvestRequest(**json.loads(sys.argv[1])), Path(sys.argv[2]), say=say, shard_bytes=1)
"""
DIE_IN_THE_FOURTH_SHARD = HARVEST_IN_ITS_OWN_PROCESS.replace(
    "say=say", "on_progress=lambda _, done, total: done > 8000 and os.kill(os.getpid(), signal.SIGKILL)"
).replace("import json, sys", "import json, os, signal, sys")


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load(str(BUNDLED_MODEL), device="cpu")


@pytest.fixture(scope="module")
def raw_model():
    return transformers.GPT2LMHeadModel.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def small_store(tmp_path_factory):
    return harvested(SMALL, tmp_path_factory.mktemp("cache"), shard_bytes=ONE_BATCH)


def harvested(request: HarvestRequest, *arguments, **options) -> ActivationStore:
    """The store of the only site of a request."""
    (store,) = harvest(request, *arguments, **options).values()
    return store


def raw_activations(raw_model, tokens_WxT, layer) -> dict[str, np.ndarray]:
    """Activations of the model of transformers, read by torch hooks on its modules."""
    found = {}
    block = raw_model.transformer.h[layer]

    def first(value):
        return (value[0] if isinstance(value, tuple) else value).numpy()

    handles = [
        block.register_forward_pre_hook(lambda _, args: found.update(resid_pre=first(args))),
        block.attn.register_forward_hook(lambda _, args, out: found.update(attn_out=first(out))),
        block.ln_2.register_forward_pre_hook(lambda _, args: found.update(resid_mid=first(args))),
        block.mlp.register_forward_hook(lambda _, args, out: found.update(mlp_out=first(out))),
        block.register_forward_hook(lambda _, args, out: found.update(resid_post=first(out))),
    ]
    with torch.inference_mode():
        raw_model(torch.from_numpy(tokens_WxT.astype(np.int64)), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


# Values.


@pytest.mark.parametrize("hook", STREAMS)
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_each_hook_has_the_values_of_the_raw_model_alone_and_with_the_others(model, raw_model, layer, hook):
    tokens_WxT, site = np.random.default_rng(0).integers(0, 4096, (6, 20), dtype=np.int32), Site(layer, hook)
    ((found_at, activation_WxTxD),) = model.activations(tokens_WxT, [site]).items()
    assert found_at == site and activation_WxTxD.dtype == np.float32
    expected_WxTxD = raw_activations(raw_model, tokens_WxT, layer)[hook]
    np.testing.assert_allclose(activation_WxTxD, expected_WxTxD, rtol=1e-5, atol=1e-4)
    together = model.activations(tokens_WxT, HarvestRequest(layer=layer, hook=tuple(STREAMS)).sites)
    np.testing.assert_array_equal(together[site], activation_WxTxD)


@pytest.fixture(scope="module")
def by_transformer_lens(model):
    """(token windows, all activations from TransformerLens' `run_with_cache`)."""
    tokens_WxT = np.random.default_rng(1).integers(0, 4096, (6, 20), dtype=np.int32)
    with torch.inference_mode():
        _, cache = model.bridge.run_with_cache(torch.from_numpy(tokens_WxT).long())
    return tokens_WxT, cache


def test_all_hooks_of_two_layers_in_one_run_are_those_of_transformer_lens(model, by_transformer_lens):
    tokens_WxT, cache = by_transformer_lens
    sites = HarvestRequest(layer=(3, 1), hook=tuple(POINTS)).sites
    found = model.activations(tokens_WxT, sites)
    assert set(found) == set(sites) and len(sites) == 22
    for site in sites:
        np.testing.assert_allclose(found[site], cache[site.hook_name].flatten(2).numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("hook", STREAMS)
@pytest.mark.parametrize("below", POINTS)
def test_only_blocks_with_hooks_inside_run_in_the_code_of_transformer_lens(model, by_transformer_lens, below, hook):
    tokens_WxT, cache = by_transformer_lens
    ran = []
    handles = [
        block.attn.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))  # a module of TransformerLens
        for layer, block in enumerate(model.bridge.blocks)
    ]
    found = model.activations(tokens_WxT, [Site(2, hook), Site(1, below)])
    for handle in handles:
        handle.remove()
    assert len(found) == 2
    for site, activations_WxTxD in found.items():
        np.testing.assert_allclose(activations_WxTxD, cache[site.hook_name].flatten(2).numpy(), rtol=1e-5, atol=1e-4)
    hooked_inside = [] if below in ("resid_pre", "resid_post") else [1]
    assert ran == hooked_inside + ([2] if hook != "resid_pre" else [])


@pytest.mark.parametrize(
    ("hook", "modules_that_run"),
    [
        ("resid_pre", []),
        ("attn_out", ["attn"]),
        ("resid_mid", ["attn"]),
        ("mlp_out", ["attn", "mlp"]),
        ("resid_post", ["attn", "mlp"]),
    ],
)
def test_nothing_after_the_hook_is_computed(model, hook, modules_that_run):
    last = model.n_layers - 1
    modules = {
        "attn": model.bridge.blocks[last].attn,
        "mlp": model.bridge.blocks[last].mlp,
        "ln_final": model.bridge.ln_final,
        "unembed": model.bridge.unembed,
    }
    ran = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name, module in modules.items()
    ]
    model.activations(np.ones((1, 4), np.int32), [Site(last, hook), Site(0, "resid_pre")])
    for handle in handles:
        handle.remove()
    assert ran == modules_that_run


def test_reading_activations_does_not_change_the_model(model, raw_model):
    tokens = torch.arange(40).reshape(2, 20)
    model.activations(tokens.numpy(), [Site(3, "resid_mid"), Site(1, "attn_out")])
    with torch.inference_mode():
        _, cache = model.bridge.run_with_cache(tokens)
        expected = raw_model(tokens, output_hidden_states=True).hidden_states[1]
    assert "blocks.0.attn.hook_pattern" in cache  # a hook inside of blocks, which run without hooks in a harvest
    torch.testing.assert_close(cache["blocks.0.hook_resid_post"], expected, rtol=1e-4, atol=1e-4)


def test_a_llama_with_rotary_positions_and_grouped_heads(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    raw = transformers.LlamaForCausalLM(config).eval()
    raw.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(BUNDLED_MODEL).save_pretrained(tmp_path)
    tokens_WxT = np.random.default_rng(0).integers(0, 4096, (3, 20), dtype=np.int32)
    with torch.inference_mode():
        hidden = raw(torch.from_numpy(tokens_WxT).long(), output_hidden_states=True).hidden_states
    model = LanguageModel.load(str(tmp_path), device="cpu")
    assert (model.n_layers, model.d_model) == (3, 32)
    sites = Site(2, "resid_pre"), Site(0, "resid_post"), Site(0, "attn_out")
    found = model.activations(tokens_WxT, sites)
    np.testing.assert_allclose(found[sites[0]], hidden[2].numpy(), atol=1e-6)
    np.testing.assert_allclose(found[sites[1]], hidden[1].numpy(), atol=1e-6)


def test_the_weights_hash_identifies_a_model(model):
    assert model.weights_hash() == LanguageModel.load(str(BUNDLED_MODEL), device="cpu").weights_hash()
    before = model.weights_hash()
    parameter = model.bridge.blocks[1].mlp.original_component.c_fc.weight
    with torch.no_grad():
        parameter[0, 0] += 1
        assert model.weights_hash() != before
        parameter[0, 0] -= 1


# Models that cannot be loaded.


def test_loading_is_silent(capfd):
    LanguageModel.load(str(BUNDLED_MODEL), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_a_model_file_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    for path in BUNDLED_MODEL.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack the weights transformer\.h\.1\.mlp\.c_fc\.weight"):
        LanguageModel.load(str(tmp_path))


def test_a_damaged_model_file_is_refused_with_the_reason(tmp_path):
    for path in BUNDLED_MODEL.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be loaded: SafetensorError"):
        LanguageModel.load(str(tmp_path))


# Stores.


def test_rows_are_the_activations_of_their_windows_without_the_first_position(small_store, raw_model):
    train = small_store.train
    assert len(train) == 720 * 19 and len(small_store.held_out) == 80 * 19
    rows = np.random.default_rng(0).integers(0, len(train), 40)
    contexts = [train.context(int(row)) for row in rows]
    expected = raw_activations(raw_model, np.stack([tokens_T for tokens_T, _, _ in contexts]), 2)["resid_pre"]
    for i, (row, (_, position, _)) in enumerate(zip(rows, contexts, strict=True)):
        assert 1 <= position < 20
        np.testing.assert_allclose(train[row], expected[i, position], rtol=2e-3, atol=2e-3)  # float16


def test_the_first_position_is_kept_when_asked_for(tmp_path, raw_model):
    store = harvested(HarvestRequest(**BUNDLED, layer=1, n_samples=60, seq_len=8, keep_first_position=True), tmp_path)
    assert len(store.train) == 54 * 8 and store.manifest["keep_first_position"] is True
    expected = raw_activations(raw_model, store.train.windows[:3], 1)["resid_pre"]
    np.testing.assert_allclose(store.train.read(0, 24), expected.reshape(24, -1), rtol=2e-3, atol=2e-3)


def test_each_site_has_its_own_store_with_the_same_windows(tmp_path, raw_model):
    request = HarvestRequest(**BUNDLED, layer=(3, 1), hook=tuple(STREAMS), n_samples=20, store_dtype="float32")
    stores = harvest(request, tmp_path)
    assert list(stores) == [(layer, hook) for layer in (3, 1) for hook in STREAMS]
    for site, store in stores.items():
        manifest = store.manifest
        assert manifest["hook_name"] == f"blocks.{site.layer}.hook_{site.hook}" == site.hook_name
        assert (manifest["layer"], manifest["hook"]) == site
        np.testing.assert_array_equal(store.train.windows, stores[Site(1, "resid_pre")].train.windows)
        expected = raw_activations(raw_model, store.train.windows, site.layer)[site.hook][:, 1:]
        found = store.train.read(0, len(store.train)).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_held_out_documents_are_never_trained_on(small_store):
    assert not set(small_store.train.documents) & set(small_store.held_out.documents)


def test_rows_harvested_under_another_name_have_the_name_of_the_request(tmp_path):
    there = shutil.copytree(BUNDLED_MODEL, tmp_path / "there"), shutil.copy(BUNDLED_CORPUS, tmp_path)
    request = HarvestRequest(model_name=str(there[0]), dataset=str(there[1]), n_samples=20)
    (first,) = harvest(request, tmp_path / "cache").values()
    shutil.rmtree(there[0])
    (store,) = harvest(
        dataclasses.replace(request, model_name="bundled", dataset="bundled"), tmp_path / "cache"
    ).values()
    assert store.directory == first.directory
    assert [store.manifest[what]["asked"] for what in ("model", "dataset")] == ["bundled"] * 2
    assert store.manifest["model"]["location"] == str(BUNDLED_MODEL)
    found = matching_store(store_facts(store), tmp_path / "cache")
    assert found and found.manifest["dataset"] == store.manifest["dataset"]


def test_the_manifest_says_where_the_rows_come_from(small_store):
    manifest = small_store.manifest
    model = {"asked": "bundled", "location": str(BUNDLED_MODEL), "fell_back": False}
    assert manifest["model"].items() >= model.items() and len(manifest["model"]["fingerprint"]) == 32
    assert manifest["hook_name"] == "blocks.2.hook_resid_pre"
    assert (manifest["n_samples"], manifest["n_samples_got"], manifest["d_model"]) == (800, 800, 256)
    assert set(manifest["versions"]) == {"torch", "transformers", "transformer_lens"}


def test_a_repeated_request_reuses_its_store_and_another_does_not(tmp_path):
    request = HarvestRequest(**BUNDLED, n_samples=20)
    first = harvested(request, tmp_path)
    began = time.perf_counter()
    again = harvested(request, tmp_path, lambda *_: pytest.fail("the model ran again"))
    assert time.perf_counter() - began < 0.5 and again.directory == first.directory
    other = harvested(HarvestRequest(**BUNDLED, n_samples=20, layer=1), tmp_path)
    assert other.directory != first.directory


def test_a_finished_store_is_found_without_torch(small_store):
    code = HARVEST_IN_ITS_OWN_PROCESS + "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    said = run_harvest(small_store.directory.parents[1], code=code)
    assert said.returncode == 0, said.stderr
    assert "13,680 training rows" in said.stdout


def test_the_model_is_freed_after_the_harvest(tmp_path):
    def models() -> int:
        return sum(type(thing) is transformers.GPT2LMHeadModel for thing in gc.get_objects())

    gc.collect()
    before = models()
    gc.disable()  # so that only memory that the harvest frees is free
    try:
        harvest(HarvestRequest(**BUNDLED, n_samples=20), tmp_path)
        assert models() == before
    finally:
        gc.enable()


def test_progress_and_messages(tmp_path):
    told, said = [], []
    text = tmp_path / "few.txt"
    text.write_text(
        "\n\n".join(f"The number {i} comes before the number {i + 1}, and after {i - 1}." for i in range(40))
    )
    request = HarvestRequest(model_name="bundled", dataset=str(text), n_samples=5000, seq_len=5)
    store = harvested(request, tmp_path, lambda *step: told.append(step), said.append)
    got = store.manifest["n_samples_got"]
    assert told[-1] == ("harvest", got * 5, got * 5) and [done for _, done, _ in told] == sorted(d for _, d, _ in told)
    assert any("cpu" in line or "cuda" in line for line in said)
    assert any(f"only {got:,} windows of 5 tokens; 5,000 were requested" in line for line in said)


def test_activations_too_large_for_float16_are_in_a_wider_format_and_it_is_said(tmp_path, recwarn):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    folder.mkdir()
    for path in BUNDLED_MODEL.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    weights["transformer.wpe.weight"] *= 1e7
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    request, said = {"model_name": str(folder), "dataset": "bundled", "n_samples": 20}, []
    store = harvested(HarvestRequest(**request), tmp_path, say=said.append)
    assert "blocks.0.hook_resid_pre: rows that do not fit float16 are in float32" in said
    assert not [w for w in recwarn if "overflow" in str(w.message)]
    exact = harvested(HarvestRequest(**request, store_dtype="float32"), tmp_path)
    np.testing.assert_array_equal(store.train.read(0, 18 * 19), exact.train.read(0, 18 * 19))
    assert not difference(identity(store), identity(harvested(HarvestRequest(**request), tmp_path / "again")))


# Several sites, one pass of the model.

BATCHES = 7 + 1  # SMALL has 720 training and 80 held-out windows, 103 per batch


@pytest.fixture
def blocks_run():
    """The layer of each block that computes a batch of the harvest, in any model object."""
    ran: list[int] = []

    def count(module, arguments):
        if type(module) is GPT2Block and len(arguments[0]) > rehearsal.WINDOWS:
            ran.append(module.attn.layer_idx)

    handle = register_module_forward_pre_hook(count)
    yield ran
    handle.remove()


@pytest.fixture(scope="module")
def three_sites(tmp_path_factory):
    """The stores of layers 1, 2 and 3 from one uninterrupted harvest."""
    return harvest(several(1, 2, 3), tmp_path_factory.mktemp("three"), shard_bytes=ONE_BATCH)


def times_of(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def several(*layers: int) -> HarvestRequest:
    return dataclasses.replace(SMALL, layer=layers)


def test_several_sites_are_harvested_in_one_pass_with_unchanged_rows(tmp_path, blocks_run, small_store, three_sites):
    stores = harvest(several(3, 1, 2), tmp_path, shard_bytes=ONE_BATCH)
    assert blocks_run == [0, 1, 2] * BATCHES  # each batch runs once, and no block after the deepest site
    assert [site.layer for site in stores] == [3, 1, 2]
    for site, store in stores.items():
        assert files_of(store.directory) == files_of(three_sites[site].directory)
    alone, among_others = small_store.directory, three_sites[Site(2, "resid_pre")].directory
    assert alone.name == among_others.name and files_of(alone) == files_of(among_others)


def test_a_site_of_an_earlier_request_is_not_harvested_again(tmp_path, blocks_run, three_sites):
    earlier = harvested(several(3), tmp_path, shard_bytes=ONE_BATCH).directory
    before = times_of(earlier)
    blocks_run.clear()
    steps = []
    stores = harvest(several(3, 1), tmp_path, lambda *step: steps.append(step), shard_bytes=ONE_BATCH)
    assert blocks_run == [0] * BATCHES  # only up to the missing site
    assert steps[-1] == ("harvest", 800 * 20, 800 * 20)
    found, made = (store.directory for store in stores.values())
    assert found == earlier and times_of(earlier) == before
    assert files_of(made) == files_of(three_sites[Site(1, "resid_pre")].directory)


# Interrupted and continued harvests.


def start_harvest(cache_dir: Path, code: str = HARVEST_IN_ITS_OWN_PROCESS, layer: object = 2) -> subprocess.Popen:
    request = json.dumps({**BUNDLED, "layer": layer, "n_samples": 800})
    command = [sys.executable, "-c", code, request, str(cache_dir)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def run_harvest(cache_dir: Path, code: str, layer: object = 2) -> subprocess.CompletedProcess:
    process = start_harvest(cache_dir, code, layer)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_a_harvest_that_was_killed_and_resumed_is_the_same_byte_for_byte(tmp_path, small_store):
    assert run_harvest(tmp_path, code=DIE_IN_THE_FOURTH_SHARD).returncode == -signal.SIGKILL
    directory = tmp_path / "activations" / small_store.directory.name
    done = sorted(directory.glob("train/shard-*.json"))
    assert len(done) == 3 and not (directory / "manifest.json").exists()
    with open(directory / "train/.rows-00003.npy.0a.tmp", "wb") as torn:  # as after a kill during writing
        torn.write(b"torn")
    written = [(path, path.stat().st_mtime_ns) for path in directory.glob("train/rows-*.npy")]
    steps = []
    harvested(SMALL, tmp_path, lambda *step: steps.append(step[1]), shard_bytes=ONE_BATCH).verify()
    assert files_of(directory) == files_of(small_store.directory)
    assert [(path, path.stat().st_mtime_ns) for path, _ in written] == written  # these files were not written again


def test_a_harvest_continues_at_the_first_shard_that_any_site_lacks(tmp_path, blocks_run, three_sites):
    assert run_harvest(tmp_path, code=DIE_IN_THE_FOURTH_SHARD, layer=[1, 3]).returncode == -signal.SIGKILL
    whole = {layer: three_sites[Site(layer, "resid_pre")].directory for layer in (1, 3)}
    behind, ahead = (tmp_path / "activations" / whole[layer].name for layer in (1, 3))
    assert [len(list(site.glob("train/shard-*"))) for site in (behind, ahead)] == [3, 3]
    for torn in behind.glob("train/*-00002.*"):  # as after a kill between the two sites
        torn.unlink()
    good = [*behind.glob("train/*.npy"), *ahead.glob("train/*.npy")]
    before = {path: path.stat().st_mtime_ns for path in good}
    assert len(good) == 3 * (2 + 3)

    harvest(several(1, 3), tmp_path, shard_bytes=ONE_BATCH)
    assert blocks_run == [0] + [0, 1, 2] * (BATCHES - 3)  # the third shard runs only up to layer 1
    assert {path: path.stat().st_mtime_ns for path in good} == before
    assert files_of(behind) == files_of(whole[1]) and files_of(ahead) == files_of(whole[3])


def test_a_full_disk_is_reported_and_the_harvest_can_continue(tmp_path, small_store):
    """The kernel limits the size of files, which fails at the same place as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(_, done, total):
        if done > 4000:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    try:
        with pytest.raises(InputError, match="disk is full.*--cache-dir.*continues from there") as caught:
            harvest(SMALL, tmp_path, fill_the_disk, shard_bytes=ONE_BATCH)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.EFBIG
    directory = tmp_path / "activations" / small_store.directory.name
    assert len(list(directory.glob("train/shard-*.json"))) == 1 and not list(directory.rglob("*.tmp"))
    harvest(SMALL, tmp_path, shard_bytes=ONE_BATCH)
    assert files_of(directory) == files_of(small_store.directory)


def test_an_unwritable_cache_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--cache-dir .*file: cannot be written to"):
        harvest(SMALL, tmp_path / "file")


def test_two_processes_that_want_the_same_store_do_not_mix(tmp_path, small_store):
    both = [start_harvest(tmp_path) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("waiting for it" in text for text in said) == [False, True]
    assert sorted("harvest runs on" in text for text in said) == [False, True]
    assert files_of(tmp_path / "activations" / small_store.directory.name) == files_of(small_store.directory)


def test_two_processes_whose_sites_overlap_do_not_mix(tmp_path, three_sites):
    both = [start_harvest(tmp_path, layer=layers) for layers in ([1, 2], [3, 2])]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("waiting for it" in text for text in said) == 1
    for store in three_sites.values():
        assert files_of(tmp_path / "activations" / store.directory.name) == files_of(store.directory)


@pytest.mark.parametrize("layers", [[1, 2], [2, 1]])
def test_a_process_that_waits_for_the_first_lock_holds_no_other(tmp_path, three_sites, layers):
    """Locks are taken in a fixed order for any order of the sites, so that processes never wait for each other."""
    names = sorted(three_sites[Site(layer, "resid_pre")].directory.name for layer in layers)
    first, last = (FileLock(tmp_path / "activations" / f"{name}.lock") for name in names)
    with first:
        process = start_harvest(tmp_path, layer=layers)
        said = process.stdout.readline()
        while "waiting for it" not in said:
            assert said, "it did not wait"
            said = process.stdout.readline()
        with last.acquire(timeout=0):
            process.kill()
            process.communicate()
