"""SAELens' evaluation (sae_lens.evals) and ours agree on the same model, tokens and dictionaries.

Needs an environment with sae-lens 6.54 (it cannot share ours): SAE_PEERS_PYTHON=peers/bin/python pytest -m slow
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from harvest.request import Site
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL

pytestmark = pytest.mark.slow
PEERS = os.environ.get("SAE_PEERS_PYTHON")
SEQ_LEN, END_OF_TEXT = 20, 0
KINDS = ("relu", "jump_relu", "gated", "topk", "abs_topk", "batch_topk", "matryoshka")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> list[Path]:
    """A run with one member for each exported architecture, on layer 2 of the bundled model."""
    import main

    folder = tmp_path_factory.mktemp("peers")
    argv = ["--model-name", "bundled", "--dataset", "bundled", "--layer", "2", "--activation", *KINDS]
    argv += ["--n-samples", "1000", "--epochs", "3", "--hidden-dim", "64", "--target-l0", "8", "--k", "8"]
    argv += ["--ce-windows", "0", "--run-dir", str(folder / "run"), "--cache-dir", str(folder / "cache")]
    assert main.run_as_command(argv) == 0
    return sorted((folder / "run" / "members").iterdir())


def by_sae_lens(tmp_path, windows_WxT, site: Site, model_class: str, ignored: int, directories) -> list[dict]:
    np.save(tmp_path / "windows.npy", windows_WxT)
    script = Path(__file__).with_name("sae_lens_loss.py")
    argv = [PEERS, script, BUNDLED_MODEL, tmp_path / "windows.npy", site.hook_name, model_class, ignored, *directories]
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.partition("FIGURES")[2])


@pytest.mark.skipif(not PEERS, reason="SAE_PEERS_PYTHON names no interpreter with sae-lens")
@pytest.mark.parametrize("first_position", [0, 1], ids=["all positions", "the first is a special token"])
@pytest.mark.parametrize(
    ("hook", "model_class"), [("resid_pre", "HOOKED"), ("resid_mid", "HOOKED"), ("mlp_out", "BRIDGE")]
)
def test_sae_lens_measures_the_same(trained, tmp_path, hook, model_class, first_position):
    from analysis.quality.loss_recovered import reconstruction_by
    from harvest.interventions.loss_recovered import losses
    from harvest.model.language_model import LanguageModel
    from harvest.request import HarvestRequest
    from harvest.text.windows import token_windows
    from sae_jax.formats import load_dictionary

    model, site = LanguageModel.load(str(BUNDLED_MODEL), device="cpu"), Site(2, hook)
    request = HarvestRequest(n_samples=1000, seq_len=SEQ_LEN)
    windows_WxT = token_windows(str(BUNDLED_CORPUS), model.tokenizer, request)["held_out"].tokens_WxT
    if first_position:
        windows_WxT = windows_WxT.copy()
        windows_WxT[:, 0] = END_OF_TEXT
    replacements = {path.name: reconstruction_by(load_dictionary(path).sae) for path in trained}
    clean, lost = losses(model, windows_WxT, site, {**replacements, "zero": np.zeros_like}, first_position)
    ignored = END_OF_TEXT if first_position else -1
    theirs = by_sae_lens(tmp_path, windows_WxT, site, model_class, ignored, trained)
    zero, rel = lost["zero"], 1e-4
    for path, figures in zip(trained, theirs, strict=True):
        own = lost[path.name]
        ce_recovered = (zero.ce_W.mean() - own.ce_W.mean()) / (zero.ce_W.mean() - clean.ce_W.mean())
        kl_recovered = 1 - own.kl_W.mean() / zero.kl_W.mean()
        print(f"{hook} {path.name}: ours CE {ce_recovered:.4f} KL {kl_recovered:.4f}; SAELens {figures}")
        assert clean.ce_W.mean() == pytest.approx(figures["ce_loss_without_sae"], rel=rel)
        assert own.ce_W.mean() == pytest.approx(figures["ce_loss_with_sae"], rel=rel)
        assert own.kl_W.mean() == pytest.approx(figures["kl_div_with_sae"], rel=rel)
        ce_zero, kl_zero = figures["ce_loss_with_ablation"], figures["kl_div_with_ablation"]
        if not first_position:  # otherwise SAELens ablates special tokens, too, which its dictionaries do not change
            assert zero.ce_W.mean() == pytest.approx(ce_zero, rel=rel) and zero.kl_W.mean() == pytest.approx(
                kl_zero, rel=rel
            )
            assert ce_recovered == pytest.approx(figures["ce_loss_score"], abs=1e-3)
            assert kl_recovered == pytest.approx(figures["kl_div_score"], abs=1e-3)
        by_its_zero = (ce_zero - own.ce_W.mean()) / (ce_zero - clean.ce_W.mean())
        assert by_its_zero == pytest.approx(figures["ce_loss_score"], abs=1e-3)
        assert 1 - own.kl_W.mean() / kl_zero == pytest.approx(figures["kl_div_score"], abs=1e-3)
