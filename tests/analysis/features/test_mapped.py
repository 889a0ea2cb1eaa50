"""Memory-mapped arrays equal the written ones, or the damaged file is named."""

import numpy as np
import pytest

from analysis.features import mapped
from harvest.errors import InputError
from harvest.files import write_arrays

ARRAYS = {"density_F": np.linspace(0, 1, 50), "sample_FxR": np.arange(600, dtype=np.float32).reshape(50, 12)}


def test_a_flipped_bit_of_a_mapped_file_is_reported(tmp_path):
    path = tmp_path / "features.npz"
    write_arrays(path, ARRAYS)
    found = mapped.mapped_arrays(path, "study it again")
    assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items())
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            found = mapped.mapped_arrays(path, "study it again")
            assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items())
        except InputError as error:
            assert str(error).startswith(f"{path} ") and str(error).endswith(": study it again")


def test_a_file_is_compared_once_in_a_process_unless_it_changes(tmp_path, monkeypatch):
    path, compared = tmp_path / "features.npz", []
    monkeypatch.setattr(mapped, "compare_arrays", lambda path, advice: compared.append(path))
    for _ in range(2):
        write_arrays(path, ARRAYS)
        for _ in range(3):
            mapped.mapped_arrays(path, "study it again")
    assert compared == [path, path]


def test_a_file_of_another_program_is_reported(tmp_path):
    np.savez(tmp_path / "features.npz", **ARRAYS)
    with pytest.raises(InputError, match="features.npz has no checksum"):
        mapped.mapped_arrays(tmp_path / "features.npz", "study it again")
