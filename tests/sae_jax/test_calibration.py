"""Calibration: which rows it uses, and that exported dictionaries reach the requested L0 on them."""

import numpy as np
import pytest
from populations import member_of
from rows import make_store

from sae_jax import calibration
from sae_jax.calibration import calibration_sample, calibration_windows, metric_windows, spread_windows, with_l0
from sae_jax.formats.trained import trained_dictionary
from sae_jax.models.registry import KINDS

MANIFEST = {
    "model": {"location": "none"},
    "dataset": {"location": "none"},
    "hook_name": "blocks.0.hook_resid_pre",
    "seq_len": 8,
}


def test_calibration_uses_pieces_of_all_documents_and_leaves_four_of_five_windows_to_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "CALIBRATION_ROWS", 200)
    split = make_store(tmp_path, windows=1500, dtype="float32").held_out
    chosen_W, others_W = calibration_windows(split), metric_windows(split)
    assert len(chosen_W) == len(others_W) // 4 and not set(chosen_W) & set(others_W)
    everything_NxD = split.read(0, len(split))
    place = {row.tobytes(): number for number, row in enumerate(everything_NxD)}
    drawn = [place[row.tobytes()] for row in calibration_sample(split)]
    assert len(set(drawn)) == 200 and set(np.array(drawn) // split.positions) <= set(chosen_W)
    thirds = np.histogram(drawn, 3, (0, len(split)))[0]
    assert thirds.min() > 40, "rows come from the beginning, the middle and the end of the text"
    np.testing.assert_array_equal(calibration_sample(split), everything_NxD[drawn])


def test_windows_are_spread_evenly():
    windows_W = np.array([0, 1, 2, 4, 5])
    assert spread_windows(windows_W, 3).tolist() == [0, 2, 5]
    assert spread_windows(windows_W, 100).tolist() == [0, 1, 2, 4, 5]
    assert spread_windows(windows_W, 1).tolist() == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_dictionary_fires_as_often_as_requested_on_the_rows_that_it_was_fitted_to(kind):
    rng, d, f, l0 = np.random.default_rng(0), 16, 96, 12.5
    sae_class = KINDS[kind]
    shapes = {"W_enc": (d, f), "W_dec": (f, d), "b_enc": f}
    tensors = {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()} | {"b_dec": np.zeros(d)}
    tensors |= {name: np.asarray(value) for name, value in sae_class.extra_params(f).items()}
    settings = {"threshold": 0.1, "k": 12}
    tensors = {name: np.asarray(t, np.float32) for name, t in sae_class.export(tensors, settings).items()}
    control = {"k": 12} if "k" in sae_class.__annotations__ or sae_class.architecture in ("topk", "abstopk") else {}
    dictionary = trained_dictionary(member_of(activation=kind, hidden_dim=f, **control), tensors, MANIFEST)
    x_NxD = rng.standard_normal((500, d)).astype(np.float32)
    fitted = with_l0(dictionary, x_NxD, l0)
    reached = float((fitted.sae.encode(x_NxD) != 0).sum(1).mean())
    if dictionary.cfg["architecture"] in ("topk", "abstopk"):
        assert fitted is dictionary
    else:
        assert reached == pytest.approx(l0, rel=0.01)
