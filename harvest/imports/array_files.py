"""Arrays in files of other programs, read piece by piece: .npy, .safetensors, .parquet, .zarr and Arrow data sets.

Nothing that is read is executed: pickled objects are refused.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from harvest.errors import InputError, shortened

FORMATS = ".npy, .safetensors, .parquet, .zarr, or the folder of an Arrow data set (save_to_disk)"


@dataclass(frozen=True)
class Column:
    """An array in a file. Its first axis counts the entries, such as rows or windows."""

    path: Path
    name: str  # "" in a file of one array without a name
    shape: tuple[int, ...]
    kind: str  # "f" for floating-point numbers, "i" for whole numbers, otherwise another letter
    read: Callable[[int, int], np.ndarray]  # entries [start, stop) as float32, or as whole numbers

    @property
    def label(self) -> str:
        return f"{self.path}, {self.name}" if self.name else str(self.path)


def columns_of(path: Path) -> dict[str, Column]:
    """The arrays in a file or folder, by name. Raises InputError, with the reason, if it cannot be read."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder: correct the path")
    reader = _reader_of(path)
    if reader is None:
        raise InputError(f"{path}: is in none of the formats that can be imported: give {FORMATS}")
    with _explained(str(path)):
        return reader(path)


def joined(columns: Sequence[Column]) -> Column:
    """The entries of several files as one array. Raises InputError if their other axes differ."""
    first = columns[0]
    for column in columns[1:]:
        if column.shape[1:] != first.shape[1:]:
            raise InputError(
                f"{column.label} has entries of shape {list(column.shape[1:])}, {first.label} of "
                f"{list(first.shape[1:])}: import them separately"
            )
    starts = [0, *accumulate(column.shape[0] for column in columns)]

    def read(start: int, stop: int) -> np.ndarray:
        parts = []
        while start < stop:
            number = bisect_right(starts, start) - 1
            end = min(stop, starts[number + 1])
            parts.append(columns[number].read(start - starts[number], end - starts[number]))
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return Column(first.path, first.name, (starts[-1], *first.shape[1:]), first.kind, read)


def _reader_of(path: Path) -> Callable[[Path], dict[str, Column]] | None:
    if path.is_dir():
        if (path / "dataset_dict.json").exists():
            raise InputError(f"{path} holds several splits of a data set: give the folder of one of them")
        if (path / "dataset_info.json").exists():
            return _arrow
        return _zarr if any((path / name).exists() for name in (".zarray", ".zgroup", "zarr.json")) else None
    return {".npy": _npy, ".safetensors": _safetensors, ".parquet": _parquet}.get(path.suffix)


def _npy(path: Path) -> dict[str, Column]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return {"": _column(path, "", array.shape, array.dtype, lambda start, stop: array[start:stop])}


def _safetensors(path: Path) -> dict[str, Column]:
    import torch
    from safetensors import safe_open

    file = safe_open(path, framework="pt")

    def read(name: str, start: int, stop: int) -> np.ndarray:
        tensor = file.get_slice(name)[start:stop]
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

    columns = {}
    for name in file.keys():  # noqa: SIM118 (it is no mapping)
        part = file.get_slice(name)
        dtype = np.dtype("f4") if part.get_dtype().startswith("BF") else file.get_slice(name)[:0].numpy().dtype
        columns[name] = _column(path, name, tuple(part.get_shape()), dtype, partial(read, name))
    return columns


def _zarr(path: Path) -> dict[str, Column]:
    import json

    import tensorstore

    folders = [path, *sorted(p for p in path.iterdir() if p.is_dir())]
    columns = {}
    for folder in folders:
        if (folder / ".zarray").exists():
            driver = "zarr"
        elif (folder / "zarr.json").exists() and json.loads((folder / "zarr.json").read_text())["node_type"] == "array":
            driver = "zarr3"
        else:
            continue
        name = "" if folder == path else folder.name
        store = {"driver": "file", "path": f"{folder.absolute()}/"}
        array = tensorstore.open({"driver": driver, "kvstore": store}, read=True).result()
        read = partial(lambda array, start, stop: array[start:stop].read().result(), array)
        columns[name] = _column(path, name, array.shape, array.dtype.numpy_dtype, read)
    return columns


def _arrow(path: Path) -> dict[str, Column]:
    from datasets import Dataset

    table = Dataset.load_from_disk(str(path)).with_format("arrow")
    return _table_columns(path, len(table), table.column_names, lambda start, stop: table[start:stop])


def _parquet(path: Path) -> dict[str, Column]:
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path)
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    starts, cache = [0, *accumulate(groups)], dict[int, Any]()

    def read(start: int, stop: int) -> Any:
        """The table that holds these entries. The last group of rows that was read is kept, because pieces follow."""
        import pyarrow

        parts = []
        for number in range(bisect_right(starts, start) - 1, len(groups)):
            if starts[number] >= stop:
                break
            if number not in cache:
                cache.clear()
                cache[number] = file.read_row_group(number)
            first = max(0, start - starts[number])
            parts.append(cache[number].slice(first, min(stop, starts[number + 1]) - starts[number] - first))
        return pyarrow.concat_tables(parts)

    return _table_columns(path, starts[-1], file.schema_arrow.names, read)


def _table_columns(
    path: Path, entries: int, names: Sequence[str], read: Callable[[int, int], Any]
) -> dict[str, Column]:
    columns = {}
    for name in names if entries else ():
        part = partial(lambda name, start, stop: _numbers(read(start, stop).column(name), f"{path}, {name}"), name)
        try:
            first = part(0, 1)
        except InputError:
            continue  # texts and the like, which are not imported
        columns[name] = _column(path, name, (entries, *first.shape[1:]), first.dtype, part)
    return columns


def _numbers(column: Any, where: str) -> np.ndarray:
    """The numbers of an Arrow column of numbers or of lists, which may be nested but must be of equal length."""
    import pyarrow
    import pyarrow.types as types

    array = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
    shape = [len(array)]
    while True:
        array = array.storage if isinstance(array, pyarrow.ExtensionArray) else array
        if array.null_count:
            raise InputError(f"{where}: an entry is missing: leave it out of the file")
        if not (types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type)):
            break
        lengths = array.value_lengths().unique().to_pylist() if len(array) else [0]
        if len(lengths) > 1:
            raise InputError(f"{where}: entries differ in length ({min(lengths)} to {max(lengths)}): all need the same")
        array, shape = array.flatten(), [*shape, lengths[0]]
    if not (types.is_floating(array.type) or types.is_integer(array.type)):
        raise InputError(f"{where}: holds {array.type} and no numbers")
    return array.to_numpy(zero_copy_only=False).reshape(shape)


def _column(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, read: Callable[..., np.ndarray]) -> Column:
    kind = "f" if dtype.kind in "fV" else "i" if dtype.kind in "iu" else dtype.kind  # bfloat16 is of kind V
    where = Column(path, name, tuple(shape), kind, read).label

    def plain(start: int, stop: int) -> np.ndarray:
        with _explained(where):
            values = read(start, stop)
        return np.asarray(values, np.float32) if kind == "f" else np.asarray(values)

    return Column(path, name, tuple(shape), kind, plain)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """A context in which any error of a library becomes an InputError: each raises others for damaged files."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {shortened(error)}"
        raise InputError(f"{where} cannot be read ({problem}): write it again") from error
