"""Files with checksums: a flipped bit is reported with the name of the file, or changes nothing that is read."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from harvest.errors import InputError
from harvest.files import append_lines, read_arrays, read_json, read_lines, write_arrays, write_json

RECORD = {"members": [{"id": "relu-s0", "l0": 31.25, "failed": None}], "note": "é\n", "big": 1e-300, "flag": True}
ARRAYS = {
    "direction": np.linspace(0, 1, 60, dtype=np.float16).reshape(6, 10),
    "density": np.zeros(6),
    "rows": np.array(7),
}


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a)


def test_a_flipped_bit_of_a_record_is_reported_or_changes_nothing(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, RECORD)
    whole, harmless = path.read_bytes(), 0
    for bit in (bits := random.Random(0).sample(range(8 * len(whole)), 250)):
        path.write_bytes(flipped(whole, bit))
        try:
            assert read_json(path, "do it again") == RECORD, bit
            harmless += 1
        except InputError as error:
            assert str(error).startswith(f"{path} ") and str(error).endswith(": do it again")
    assert harmless < 0.1 * len(bits)  # bits of its layout, such as spaces


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_to_arrays_is_reported_or_changes_nothing(compressed, tmp_path):
    path, chance = tmp_path / "arrays.npz", random.Random(0)
    write_arrays(path, ARRAYS, compressed)
    whole = path.read_bytes()
    bits = chance.sample(range(8 * len(whole)), 250)
    damaged = [flipped(whole, bit) for bit in bits] + [whole[:size] for size in chance.sample(range(len(whole)), 100)]
    for content in damaged:
        path.write_bytes(content)
        try:
            assert same(read_arrays(path, "do it again"), ARRAYS)
        except InputError as error:
            assert str(error).startswith(f"{path} ") and str(error).endswith(": do it again")


def test_missing_and_reshaped_arrays_are_reported(tmp_path):
    """Missing and reshaped arrays are found even if the archive itself is intact."""
    whole, other = tmp_path / "whole.npz", tmp_path / "other.npz"
    write_arrays(whole, ARRAYS)
    np.savez(other, **{name: array for name, array in ARRAYS.items() if name != "density"})
    with pytest.raises(InputError, match="other.npz has no checksum"):
        read_arrays(other, "do it again")


def test_arrays_that_do_not_belong_to_their_record_are_refused(tmp_path):
    path = tmp_path / "arrays.npz"
    first = write_arrays(path, ARRAYS)
    assert same(read_arrays(path, "do it again", first), ARRAYS)
    assert write_arrays(path, ARRAYS) == first  # the same content is the same
    write_arrays(path, ARRAYS | {"density": np.ones(6)})
    with pytest.raises(InputError, match="arrays.npz does not belong to the record beside it .*: do it again"):
        read_arrays(path, "do it again", first)


def lines_of(path: Path, count: int = 4) -> list[dict]:
    records = [{"step": step, "member": "é", "loss": 0.25 * step} for step in range(count)]
    append_lines(path, records[:2])
    append_lines(path, records[2:])
    assert read_lines(path, "delete the line") == records
    assert json.loads(path.read_text().splitlines()[1])["loss"] == 0.25
    return records


def test_a_flipped_bit_of_a_line_is_reported_with_its_number_or_changes_nothing(tmp_path):
    path = tmp_path / "lines.jsonl"
    records, whole = lines_of(path), path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 250):
        path.write_bytes(flipped(whole, bit))
        line = whole[: bit // 8].count(b"\n") + 1
        try:
            assert read_lines(path, "delete the line") == records, bit
        except InputError as error:
            assert str(error).startswith((f"{path}, line {line}, ", f"{path}, line {line + 1}, "))
            assert str(error).endswith(": delete the line")


def test_an_incomplete_last_line_is_ignored(tmp_path):
    path = tmp_path / "lines.jsonl"
    records, whole = lines_of(path), path.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for size in range(last, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert read_lines(path, "delete the line") == records[:-1]
