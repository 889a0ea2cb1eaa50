"""A cache that SAELens' own runner wrote is imported as the rows of its model.

Needs an environment with sae-lens 6.54: SAE_PEERS_PYTHON=peers/bin/python pytest -m slow
"""

import json
import os
import subprocess
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import main
from analysis.runs.finished import FinishedRun
from harvest.model.language_model import LanguageModel
from harvest.request import Site
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.store import ActivationStore
from harvest.text.documents import documents

pytestmark = pytest.mark.slow
PEERS = os.environ.get("SAE_PEERS_PYTHON")
SITE = Site(2, "resid_pre")


@pytest.mark.skipif(not PEERS, reason="SAE_PEERS_PYTHON names no interpreter with sae-lens")
def test_a_cache_of_saelens_is_imported_trained_on_and_exported(tmp_path):
    texts = islice(documents(str(BUNDLED_CORPUS)), 400)
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    script = Path(__file__).with_name("saelens_cache.py")
    argv = [PEERS, script, BUNDLED_MODEL, tmp_path / "texts.jsonl", SITE.hook_name, tmp_path / "cache"]
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]

    where = ("--to", tmp_path / "rows", "--model-name", "bundled")
    assert main.run_as_command([*map(str, ("import-rows", tmp_path / "cache", *where))]) == 0
    store, model = ActivationStore(tmp_path / "rows"), LanguageModel.load(str(BUNDLED_MODEL), bos="on")
    assert (store.manifest["hook_name"], store.manifest["bos"]) == (SITE.hook_name, list(model.bos))
    own_WxTxD = model.activations(store.held_out.windows, [SITE])[SITE]
    own_NxD = own_WxTxD[store.held_out.kept_positions(0, store.held_out.n_windows)]
    apart = np.abs(store.held_out.read(0, len(store.held_out)) - own_NxD)
    assert apart.max() < 2**-10 * np.abs(own_NxD).max()

    run = ("--run-dir", tmp_path / "run", "--cache-dir", tmp_path / "jax", "--ce-windows", 20)
    argv = ["--rows", tmp_path / "rows", "--activation", "topk", "--epochs", 2, *run]
    assert main.run_as_command([*map(str, argv)]) == 0
    (member,) = FinishedRun.open(tmp_path / "run").members.values()
    assert member["metrics"]["ce_recovered"] > 0.7
    exported = ("export", tmp_path / "run", "--to", tmp_path / "exported")
    assert main.run_as_command([*map(str, exported)]) == 0
    load = "import sys; from sae_lens import SAE; print(SAE.load_from_disk(sys.argv[1]).cfg.metadata.hook_name)"
    loaded = subprocess.run([PEERS, "-c", load, str(tmp_path / "exported")], capture_output=True, text=True)
    assert loaded.stdout.strip().endswith(SITE.hook_name)
