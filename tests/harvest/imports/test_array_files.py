"""Arrays that other libraries wrote are read as they are, in any pieces; other files are refused with the reason."""

import json
from pathlib import Path

import datasets
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore
import torch
from safetensors.torch import save_file

from harvest.errors import InputError
from harvest.imports.array_files import columns_of, joined

ROWS_WxTxD = np.random.default_rng(0).standard_normal((23, 3, 4)).astype(np.float32)
TOKENS_WxT = np.arange(69).reshape(23, 3)


def npy(folder: Path) -> Path:
    np.save(folder / "a.npy", ROWS_WxTxD)
    return folder / "a.npy"


def safetensors(folder: Path) -> Path:
    tensors = {"rows": torch.from_numpy(ROWS_WxTxD), "tokens": torch.from_numpy(TOKENS_WxT)}
    save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors"


def parquet(folder: Path) -> Path:
    table = {"rows": ROWS_WxTxD.tolist(), "tokens": TOKENS_WxT.tolist(), "text": ["a"] * 23}
    pq.write_table(pa.table(table), folder / "a.parquet", row_group_size=5)
    return folder / "a.parquet"


def arrow(folder: Path) -> Path:
    features = datasets.Features(
        rows=datasets.Array2D((3, 4), "float32"), tokens=datasets.Sequence(datasets.Value("int32"), length=3)
    )
    made = datasets.Dataset.from_dict({"rows": ROWS_WxTxD, "tokens": TOKENS_WxT}, features=features)
    made.save_to_disk(folder / "data", num_shards=3)
    return folder / "data"


def zarr(folder: Path, driver: str) -> Path:
    for name, array in {"rows": ROWS_WxTxD, "tokens": TOKENS_WxT}.items():
        kvstore = {"driver": "file", "path": str(folder / "a.zarr" / name)}
        spec = {"driver": driver, "kvstore": kvstore, "create": True}
        tensorstore.open(spec, dtype=array.dtype.name, shape=array.shape).result().write(array).result()
    if driver == "zarr":
        (folder / "a.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    else:
        (folder / "a.zarr" / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    return folder / "a.zarr"


@pytest.mark.parametrize(
    "write",
    [npy, safetensors, parquet, arrow, lambda folder: zarr(folder, "zarr"), lambda folder: zarr(folder, "zarr3")],
    ids=["npy", "safetensors", "parquet", "arrow", "zarr 2", "zarr 3"],
)
def test_arrays_are_read_in_any_pieces(write, tmp_path):
    columns = columns_of(write(tmp_path))
    rows = columns.get("rows") or columns[""]
    assert (rows.shape, rows.kind) == (ROWS_WxTxD.shape, "f")
    for start, stop in ((0, 23), (0, 1), (4, 11), (22, 23)):
        assert np.array_equal(rows.read(start, stop), ROWS_WxTxD[start:stop])
    if "rows" in columns:
        assert columns.keys() == {"rows", "tokens"}
        assert (columns["tokens"].shape, columns["tokens"].kind) == (TOKENS_WxT.shape, "i")
        assert np.array_equal(columns["tokens"].read(3, 9), TOKENS_WxT[3:9])


def test_several_files_are_read_as_one(tmp_path):
    for name, part in (("a", slice(0, 10)), ("b", slice(10, 11)), ("c", slice(11, 23))):
        np.save(tmp_path / f"{name}.npy", ROWS_WxTxD[part])
    whole = joined([columns_of(tmp_path / f"{name}.npy")[""] for name in "abc"])
    assert whole.shape == ROWS_WxTxD.shape
    assert np.array_equal(whole.read(8, 20), ROWS_WxTxD[8:20])


def test_half_precision_is_read_exactly(tmp_path):
    half = torch.from_numpy(ROWS_WxTxD)
    save_file({"b": half.bfloat16(), "h": half.half()}, tmp_path / "a.safetensors")
    columns = columns_of(tmp_path / "a.safetensors")
    assert np.array_equal(columns["b"].read(0, 23), ROWS_WxTxD.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.array_equal(columns["h"].read(0, 23), ROWS_WxTxD.astype(np.float16).astype(np.float32))


def write_cut(path: Path, name: str) -> Path:
    cut = path.parent / name
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return cut


def pickled(folder: Path) -> Path:
    np.save(folder / "p.npy", np.array([{"a": 1}], object), allow_pickle=True)
    return folder / "p.npy"


def splits(folder: Path) -> Path:
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"a": [[1.0]]})).save_to_disk(folder / "dict")
    return folder / "dict"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder / "none.npy", "there is no such file"),
        (pickled, "Python objects"),
        (lambda folder: write_cut(npy(folder), "cut.npy"), "cannot be read"),
        (lambda folder: write_cut(safetensors(folder), "cut.safetensors"), "cannot be read"),
        (lambda folder: write_cut(parquet(folder), "cut.parquet"), "cannot be read"),
        (splits, "holds several splits"),
        (lambda folder: folder, "in none of the formats"),
        (lambda folder: (folder / "a.pt").touch() or folder / "a.pt", "in none of the formats"),
    ],
)
def test_other_files_are_refused(write, message, tmp_path):
    with pytest.raises(InputError, match=message):
        columns_of(write(tmp_path))


@pytest.mark.parametrize("column", [[[1.0, 2.0], [3.0]], [[1.0], None], ["a", "b"]], ids=["ragged", "missing", "text"])
def test_a_column_that_is_no_array_is_left_out_or_refused(column, tmp_path):
    pq.write_table(pa.table({"rows": column}), tmp_path / "a.parquet")
    columns = columns_of(tmp_path / "a.parquet")
    if columns:
        with pytest.raises(InputError, match="differ in length|is missing"):
            columns["rows"].read(0, 2)
