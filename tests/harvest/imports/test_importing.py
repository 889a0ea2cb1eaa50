"""Rows of other programs become a store: documents are held out whole, rows of a model must be what it gives."""

from pathlib import Path

import numpy as np
import pytest

from harvest import Piece, import_rows
from harvest.errors import InputError
from harvest.model.language_model import LanguageModel
from harvest.request import Site
from harvest.sources import BUNDLED_MODEL
from harvest.store import ActivationStore

D, SITE = 6, Site(1, "resid_pre")
ROWS_NxD = np.random.default_rng(0).standard_normal((900, D)).astype(np.float32)
END_OF_TEXT = 0


def numbers_of(store: ActivationStore) -> np.ndarray:
    """The numbers of the rows in the files they come from, training rows first."""
    return np.concatenate([split.windows.ravel() for split in (store.train, store.held_out)])


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*.npy")}


def test_every_row_is_in_one_split_with_its_number(tmp_path):
    store = import_rows(ROWS_NxD, tmp_path / "s", held_out=0.2)
    assert sorted(numbers_of(store).tolist()) == list(range(900))
    rows_NxD = np.concatenate([split.read(0, len(split)) for split in (store.train, store.held_out)])
    assert np.array_equal(rows_NxD, ROWS_NxD[numbers_of(store)].astype(np.float16))
    assert 0.15 < len(store.held_out) / 900 < 0.25
    assert np.allclose(store.mean, store.train.read(0, len(store.train)).astype(np.float64).mean(0))


def test_documents_are_held_out_whole(tmp_path):
    documents_N = np.repeat(np.arange(100), 9)
    store = import_rows([Piece(ROWS_NxD, documents=documents_N)], tmp_path / "s", held_out=0.3)
    assert not set(store.train.documents.tolist()) & set(store.held_out.documents.tolist())
    for split in (store.train, store.held_out):
        assert np.array_equal(split.documents, documents_N[split.windows[:, 0]])


def test_the_store_does_not_depend_on_the_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("harvest.imports.importing.SHARD_BYTES", 100 * D * 2)
    import_rows(ROWS_NxD, tmp_path / "whole", max_norm_ratio=0)
    import_rows((ROWS_NxD[start : start + 7] for start in range(0, 900, 7)), tmp_path / "pieces", max_norm_ratio=0)
    whole, pieces = (ActivationStore(tmp_path / name) for name in ("whole", "pieces"))
    assert len(pieces.manifest["shards"]["train"]) > 3
    for split, same in ((whole.train, pieces.train), (whole.held_out, pieces.held_out)):
        assert np.array_equal(split.read(0, len(split)), same.read(0, len(same)))
        assert np.array_equal(split.windows, same.windows)


def test_rows_of_extreme_norm_are_left_out_and_counted(tmp_path):
    rows_NxD = ROWS_NxD.copy()
    rows_NxD[[3, 500]] *= 1000
    store = import_rows(rows_NxD, tmp_path / "s")
    assert store.manifest["candidate_rows"] == 900
    assert len(store.train) + len(store.held_out) == 898
    whole = import_rows(rows_NxD, tmp_path / "all", max_norm_ratio=0)
    assert len(whole.train) + len(whole.held_out) == 900


def test_values_that_float16_cannot_hold_are_kept_in_float32(tmp_path):
    store = import_rows(ROWS_NxD * 1e6, tmp_path / "s")
    assert store.manifest["dtype"] == "float32"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.load(str(BUNDLED_MODEL), bos="on")


@pytest.fixture(scope="module")
def written(model) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [W, T] with BOS in front, rows [W, T, D]) as SAELens would write them."""
    tokens_WxT = np.random.default_rng(1).integers(1, 4000, (40, 11))
    tokens_WxT[:, 5] = END_OF_TEXT
    with_bos = LanguageModel.load(str(BUNDLED_MODEL), bos="off")
    tokens_WxT = np.concatenate([np.full((40, 1), END_OF_TEXT), tokens_WxT], 1)
    return tokens_WxT, with_bos.activations(tokens_WxT, [SITE])[SITE]


FROM_MODEL = {"model_name": "bundled", "layer": SITE.layer, "hook": SITE.hook}


def test_rows_of_a_model_keep_their_text_without_bos_and_special_tokens(written, model, tmp_path):
    tokens_WxT, rows_WxTxD = written
    store = import_rows([Piece(rows_WxTxD, tokens_WxT)], tmp_path / "s", **FROM_MODEL)
    manifest = store.manifest
    assert (manifest["bos"], manifest["seq_len"], manifest["hook_name"]) == ([END_OF_TEXT], 11, SITE.hook_name)
    assert manifest["weights_hash"] == model.weights_hash()
    assert manifest["no_loss_recovered"] is None
    for split in (store.train, store.held_out):
        assert len(split) == 10 * split.n_windows  # 11 positions behind BOS, of which one is a special token
        for window in range(split.n_windows):
            number = split.documents[window]
            assert np.array_equal(split.windows[window], tokens_WxT[number, 1:])
            expected_TxD = np.delete(rows_WxTxD[number, 1:], 5, 0).astype(np.float16)
            assert np.array_equal(split.read(*split.rows_between(window, window + 1)), expected_TxD)


def test_special_tokens_are_rows_on_request(written, tmp_path):
    tokens_WxT, rows_WxTxD = written
    kept = import_rows([Piece(rows_WxTxD, tokens_WxT)], tmp_path / "s", **FROM_MODEL, special_tokens=True)
    assert len(kept.train) == 11 * kept.train.n_windows


def test_rows_in_one_list_are_those_of_the_windows(written, tmp_path):
    tokens_WxT, rows_WxTxD = written
    flat = import_rows([Piece(rows_WxTxD.reshape(-1, rows_WxTxD.shape[-1]), tokens_WxT)], tmp_path / "f", **FROM_MODEL)
    whole = import_rows([Piece(rows_WxTxD, tokens_WxT)], tmp_path / "w", **FROM_MODEL)
    assert contents(flat.directory) == contents(whole.directory)


def test_rows_of_another_place_or_text_are_refused(written, tmp_path):
    tokens_WxT, rows_WxTxD = written
    layer = FROM_MODEL | {"layer": 2}
    with pytest.raises(InputError, match="are not those of bundled at blocks.2.hook_resid_pre: they differ by"):
        import_rows([Piece(rows_WxTxD, tokens_WxT)], tmp_path / "s", **layer)
    with pytest.raises(InputError, match="are not those of bundled"):
        import_rows([Piece(rows_WxTxD, np.roll(tokens_WxT, 1, 0))], tmp_path / "s", **FROM_MODEL)
    with pytest.raises(InputError, match="have width 5, those of bundled .* 256"):
        import_rows([Piece(rows_WxTxD[..., :5], tokens_WxT)], tmp_path / "s", **FROM_MODEL)
    beyond_WxT = np.where(np.arange(40)[:, None] == 39, np.minimum(tokens_WxT * 4100, 4100), tokens_WxT)
    pieces = [Piece(rows_WxTxD[part], beyond_WxT[part]) for part in (slice(0, 30), slice(30, 40))]
    with pytest.raises(InputError, match="token 4,100 is in the text, but the model has embeddings of only 4,096"):
        import_rows(pieces, tmp_path / "s", **FROM_MODEL)
    without_WxT = np.where(np.arange(40)[:, None] == 39, 5, tokens_WxT)
    pieces = [Piece(rows_WxTxD[part], without_WxT[part]) for part in (slice(0, 30), slice(30, 40))]
    with pytest.raises(InputError, match="some windows begin with BOS and others do not"):
        import_rows(pieces, tmp_path / "s", **FROM_MODEL)
    assert not (tmp_path / "s").exists()


def with_nan() -> np.ndarray:
    rows_NxD = ROWS_NxD.copy()
    rows_NxD[7, 2] = np.nan
    return rows_NxD


@pytest.mark.parametrize(
    ("pieces", "settings", "message"),
    [
        ([], {}, "there are no rows to import"),
        (ROWS_NxD[:1], {}, "there are no (train|held_out) rows"),
        (with_nan(), {}, "entry 7 has a value that is not finite"),
        ([ROWS_NxD, ROWS_NxD[:, :5]], {}, r"an entry has shape \[1, 5\], but those before it \[1, 6\]"),
        (ROWS_NxD.astype(int), {}, "give floating-point numbers"),
        (ROWS_NxD[0], {}, r"rows of shape \[6\]"),
        ([Piece(ROWS_NxD, documents=np.arange(3))], {}, "a whole number for each of the 900 entries"),
        ([Piece(ROWS_NxD, documents=-np.arange(900))], {}, "below 0"),
        (ROWS_NxD, {"held_out": 1.0}, "leaves nothing to train on"),
        (ROWS_NxD, {"held_out": 0.0}, "held_out 0.0: must be a share over 0"),
        (ROWS_NxD, {"model_name": "bundled"}, "add layer and hook"),
        (ROWS_NxD, {"layer": 1}, "add model_name"),
        (ROWS_NxD, FROM_MODEL, "needs the tokens of the rows"),
        ([Piece(ROWS_NxD, np.zeros((9, 7), int))], FROM_MODEL, "each token needs a row"),
        ([Piece(ROWS_NxD, np.zeros(900, int))], FROM_MODEL, "windows × positions"),
        (ROWS_NxD, FROM_MODEL | {"model_name": "./nowhere"}, "no such file or directory|needs the tokens"),
        (ROWS_NxD, {"store_dtype": "float8"}, "must be one of float16"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(pieces, settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        import_rows(pieces, tmp_path / "s", **settings)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_in_use_or_has_an_odd_name_is_refused(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine").touch()
    with pytest.raises(InputError, match="already exists"):
        import_rows(ROWS_NxD, tmp_path / "s")
    with pytest.raises(InputError, match="only letters, digits"):
        import_rows(ROWS_NxD, tmp_path / "two words")
