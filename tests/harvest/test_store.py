"""The activation store: rows are read as they were written, statistics are exact, and damaged files are named."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harvest.errors import InputError
from harvest.files import checksum, read_json, write_json
from harvest.store import ActivationStore, compared_meanwhile
from harvest.store_writer import Moments, StoreWriter

SEQ_LEN, D = 5, 3
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_store(directory: Path, windows_a_shard: dict[str, list[int]], keep_first: bool = False, seed: int = 0):
    """(a store of random rows, the written arrays as {split: (rows, tokens, documents)})."""
    rng = np.random.default_rng(seed)
    positions = SEQ_LEN - (not keep_first)
    writer = StoreWriter(directory, {"seq_len": SEQ_LEN, "keep_first_position": keep_first})
    written = {}
    for split, counts in windows_a_shard.items():
        shards = []
        for index, count in enumerate(counts):
            rows_NxD = rng.normal(3, 2, (count * positions, D)).astype(np.float16)
            tokens_WxT = rng.integers(0, 100, (count, SEQ_LEN), dtype=np.int32)
            documents_W = rng.integers(0, 9, count, dtype=np.int32)
            writer.add_shard(split, index, rows_NxD, tokens_WxT, documents_W)
            shards.append((rows_NxD, tokens_WxT, documents_W))
        written[split] = tuple(np.concatenate(arrays) for arrays in zip(*shards, strict=True))
    return writer.finish(), written


@quick
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=5), keep_first=st.booleans(), data=st.data())
def test_every_row_is_read_back_with_its_window_position_and_document(tmp_path_factory, counts, keep_first, data):
    directory = tmp_path_factory.mktemp("store")
    store, written = write_store(directory, {"train": counts, "held_out": [1]}, keep_first)
    rows_NxD, tokens_WxT, documents_W = written["train"]
    assert len(store.train) == len(rows_NxD)
    np.testing.assert_array_equal(store.train.windows, tokens_WxT)
    np.testing.assert_array_equal(store.train.documents, documents_W)
    row = data.draw(st.integers(0, len(rows_NxD) - 1))
    np.testing.assert_array_equal(store.train[row], rows_NxD[row])
    tokens_T, position, document = store.train.context(row)
    positions = SEQ_LEN - (not keep_first)
    window, offset = divmod(row, positions)
    np.testing.assert_array_equal(tokens_T, tokens_WxT[window])
    assert (position, document) == (offset + (not keep_first), documents_W[window])


@quick
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=5), data=st.data())
def test_any_range_and_any_choice_of_rows_across_shards(tmp_path_factory, counts, data):
    store, written = write_store(tmp_path_factory.mktemp("store"), {"train": counts, "held_out": [1]})
    rows_NxD = written["train"][0]
    start = data.draw(st.integers(0, len(rows_NxD) - 1))
    stop = data.draw(st.integers(start + 1, len(rows_NxD) + 3))
    np.testing.assert_array_equal(store.train.read(start, stop), rows_NxD[start:stop])
    chosen = data.draw(st.lists(st.integers(0, len(rows_NxD) - 1), max_size=12))
    np.testing.assert_array_equal(store.train[chosen], rows_NxD[chosen])
    size = data.draw(st.integers(1, 20))
    np.testing.assert_array_equal(np.concatenate(list(store.train.chunks(size))), rows_NxD)


def test_a_missing_row_is_an_index_error(tmp_path):
    store, written = write_store(tmp_path, {"train": [2, 1], "held_out": [1]})
    for row in (-1, len(store.train)):
        with pytest.raises(IndexError):
            store.train[row]
    assert sum(1 for _ in store.train) == len(written["train"][0])  # a loop over the rows ends


@quick
@given(
    count=st.integers(2, 400),
    cuts=st.lists(st.integers(1, 399), max_size=6),
    mean=st.sampled_from([0.0, 1.0, -3000.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_merged_statistics_equal_those_of_the_whole(count, cuts, mean, seed):
    x_NxD = np.random.default_rng(seed).normal(mean, 2, (count, D))
    parts = [p for p in np.split(x_NxD, sorted({c for c in cuts if c < count})) if len(p)]
    merged = Moments.of(parts[0])
    for part in parts[1:]:
        merged = merged.merge(Moments.of(part))
    assert merged.count == count
    np.testing.assert_allclose(merged.mean_D, x_NxD.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(merged.m2_D / count, x_NxD.var(0), rtol=1e-12)
    np.testing.assert_allclose(merged.norm_sum, np.linalg.norm(x_NxD, axis=1).sum(), rtol=1e-12)


def test_statistics_are_those_of_the_training_rows_alone(tmp_path):
    store, written = write_store(tmp_path, {"train": [3, 4, 1], "held_out": [5]})
    rows_NxD = written["train"][0].astype(np.float64)
    np.testing.assert_allclose(store.mean, rows_NxD.mean(0), rtol=1e-12)
    np.testing.assert_allclose(store.std, rows_NxD.std(0), rtol=1e-12)
    assert store.manifest["rows"] == len(rows_NxD)
    assert store.manifest["mean_norm"] == pytest.approx(np.linalg.norm(rows_NxD, axis=1).mean(), rel=1e-12)


def test_all_missing_shards_are_named(tmp_path):
    write_store(tmp_path, {"train": [2, 2, 2], "held_out": [1]})
    (tmp_path / "train/rows-00001.npy").unlink()
    (tmp_path / "held_out/tokens-00000.npy").unlink()
    with pytest.raises(InputError, match="missing.*train/rows-00001.npy.*held_out/tokens-00000.npy"):
        ActivationStore(tmp_path)


def test_all_truncated_shards_are_named(tmp_path):
    write_store(tmp_path, {"train": [2, 2, 2], "held_out": [1]})
    for name in ("rows-00000.npy", "documents-00002.npy"):
        path = tmp_path / "train" / name
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="another size.*train/rows-00000.npy.*train/documents-00002.npy"):
        ActivationStore(tmp_path)


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_damaged_shards_are_named_by_verify(tmp_path):
    store, _ = write_store(tmp_path, {"train": [2, 2, 2], "held_out": [1]})
    store.verify()
    for name in ("rows-00000.npy", "rows-00002.npy"):
        flip_last_bit(tmp_path / "train" / name)
    with pytest.raises(InputError, match="damaged.*train/rows-00000.npy, train/rows-00002.npy"):
        ActivationStore(tmp_path).verify()


READINGS = {  # functions that read a file of the second shard
    "rows": (lambda split: split.read(0, len(split)), lambda split: split[[len(split) - 1]], lambda split: split[15]),
    "tokens": (lambda split: split.windows, lambda split: split.context(15), lambda split: split.read_windows(0, 4)),
}
READINGS["documents"] = (lambda split: split.documents, *READINGS["tokens"][1:])


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("array", READINGS)
def test_a_flipped_bit_of_a_file_is_reported_when_it_is_read(array, split, tmp_path):
    write_store(tmp_path, {"train": [2, 2], "held_out": [2, 2]})
    flip_last_bit(tmp_path / split / f"{array}-00001.npy")
    for read in READINGS[array]:
        with pytest.raises(InputError, match=f"{split}/{array}-00001.npy is damaged .*delete the store and harvest"):
            read(getattr(ActivationStore(tmp_path), split))
    rows = getattr(ActivationStore(tmp_path), split).read(0, 8)  # the first shard is not damaged
    assert len(rows) == 8


def test_a_file_is_compared_once_in_a_process_unless_it_changes(tmp_path, monkeypatch):
    write_store(tmp_path, {"train": [2, 2], "held_out": [1]})
    compared = []
    monkeypatch.setattr("harvest.stored_windows.checksum", lambda path: compared.append(path.name) or checksum(path))
    for _ in range(3):
        store = ActivationStore(tmp_path)
        store.train.read(0, 16), store.train[[0, 15]], store.verify()
    assert sorted(compared) == sorted(path.name for path, _ in store.files())
    flip_last_bit(tmp_path / "train" / "rows-00001.npy")
    with pytest.raises(InputError, match="rows-00001.npy is damaged"):
        ActivationStore(tmp_path).train.read(0, 16)


def test_rows_are_compared_in_a_thread(tmp_path):
    write_store(tmp_path, {"train": [2, 2], "held_out": [1]})
    flip_last_bit(tmp_path / "train" / "rows-00001.npy")
    store = ActivationStore(tmp_path)
    with compared_meanwhile([store]) as compared:
        assert len(store.train.not_compared().read(0, 16)) == 16
        with pytest.raises(InputError, match="damaged in the activation store .*: train/rows-00001.npy: delete"):
            compared()
    with pytest.raises(ZeroDivisionError), compared_meanwhile([store]):  # an error of the body is not hidden
        _ = 1 / 0


def test_a_changed_digit_of_the_manifest_is_reported(tmp_path):
    store, _ = write_store(tmp_path, {"train": [2], "held_out": [1]})
    path, digits = tmp_path / "manifest.json", repr(store.mean[0].item())
    path.write_text(path.read_text().replace(digits, digits[:-1] + ("1" if digits[-1] != "1" else "2")))
    with pytest.raises(InputError, match="manifest.json is damaged .*: delete the store and harvest again"):
        ActivationStore(tmp_path)


def test_a_directory_without_manifest_and_another_format_are_refused(tmp_path):
    with pytest.raises(InputError, match="no finished activation store"):
        ActivationStore(tmp_path)
    write_store(tmp_path, {"train": [1], "held_out": [1]})
    write_json(tmp_path / "manifest.json", read_json(tmp_path / "manifest.json", "") | {"format": 99})
    with pytest.raises(InputError, match="format 99"):
        ActivationStore(tmp_path)


@pytest.mark.parametrize("kept", [0, 100])
def test_a_truncated_manifest_is_named(tmp_path, kept):
    write_store(tmp_path, {"train": [1], "held_out": [1]})
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text()[:kept])
    with pytest.raises(InputError, match="manifest.json is damaged .*delete the store and harvest again") as error:
        ActivationStore(tmp_path)
    assert str(manifest) in str(error.value)


DAMAGES = {
    "short rows": ("rows-00000.npy", lambda whole: whole[:-1]),
    "other rows": ("rows-00000.npy", lambda whole: whole[:-1] + b"?"),
    "other documents": ("documents-00000.npy", lambda whole: whole[:-1] + b"?"),
    "other record": ("shard-00000.json", lambda whole: whole.replace(b'"rows": 8', b'"rows": 9')),
    "short record": ("shard-00000.json", lambda whole: whole[:-3]),
}


@pytest.mark.parametrize("name, damaged", DAMAGES.values(), ids=DAMAGES)
def test_only_a_complete_shard_of_the_same_windows_is_finished(tmp_path, name, damaged):
    tokens_WxT, documents_W = np.arange(2 * SEQ_LEN, dtype=np.int32).reshape(2, -1), np.zeros(2, np.int32)
    writer = StoreWriter(tmp_path, {})
    assert not writer.has_shard("train", 0, tokens_WxT)
    writer.add_shard("train", 0, np.ones((8, D), np.float16), tokens_WxT, documents_W)
    assert writer.has_shard("train", 0, tokens_WxT)
    assert not writer.has_shard("train", 0, tokens_WxT + 1)
    record = (tmp_path / "train/shard-00000.json").read_bytes()
    path = tmp_path / "train" / name
    whole = path.read_bytes()
    path.write_bytes(damaged(whole))
    assert path.read_bytes() != whole and not writer.has_shard("train", 0, tokens_WxT)
    path.write_bytes(whole)
    assert record == (tmp_path / "train/shard-00000.json").read_bytes()
    assert writer.has_shard("train", 0, tokens_WxT)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_values_that_are_not_finite_are_refused_and_not_written(tmp_path, value):
    writer = StoreWriter(tmp_path, {"hook_name": "blocks.1.hook_mlp_out"})
    rows_NxD = np.full((8, D), value, np.float16)
    with pytest.raises(InputError, match="blocks.1.hook_mlp_out, shard 0: a value is not finite: use --model"):
        writer.add_shard("train", 0, rows_NxD, np.zeros((2, SEQ_LEN), np.int32), np.zeros(2, np.int32))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_split_is_pickled_without_its_rows(tmp_path):
    store, written = write_store(tmp_path, {"train": [200, 200], "held_out": [1]})
    _ = store.train[0], store.train.windows  # open files and cached arrays, which must not be pickled
    sent = pickle.dumps(store.train)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent)[[5, 1500]], written["train"][0][[5, 1500]])
