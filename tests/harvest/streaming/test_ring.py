"""Shards on disk: what is written is read again, and what is not whole is no shard."""

import numpy as np
import pytest

from harvest.errors import InputError
from harvest.streaming.ring import Ring

X_NxD = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
MOST_LOST = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 2**-7}


@pytest.mark.parametrize("dtype", MOST_LOST)
def test_rows_of_several_sites_are_read_in_parts(tmp_path, dtype):
    ring = Ring(tmp_path, "one", {"a": dtype, "b": "float32"})
    ring.write(3, {"a": X_NxD, "b": 2 * X_NxD})
    assert ring.there() == {3} and ring.is_whole(3)
    a, b = ring.read(3, 20, 45)
    assert np.abs(a - X_NxD[20:45]).max() <= MOST_LOST[dtype] * np.abs(X_NxD).max()
    assert np.array_equal(b, 2 * X_NxD[20:45])
    assert a.dtype == ("float16" if dtype == "float16" else "float32")
    ring.remove(3)
    assert not ring.there() and not ring.is_whole(3)


def test_a_damaged_shard_is_not_whole(tmp_path):
    ring = Ring(tmp_path, "one", {"a": "float16"})
    ring.write(0, {"a": X_NxD})
    content = ring.path(0).read_bytes()
    for damaged in (content[:-5], content[:-5] + b"12345", content[:9], b"", b"{}" * 40):
        ring.path(0).write_bytes(damaged)
        assert not ring.is_whole(0)


def test_a_value_that_does_not_fit_is_refused(tmp_path):
    large_NxD, endless_NxD = X_NxD.copy(), X_NxD.copy()
    large_NxD[5, 5], endless_NxD[5, 5] = 1e5, np.nan
    with pytest.raises(InputError, match="at a, shard 7 .* does not fit float16: use --store-dtype bfloat16"):
        Ring(tmp_path, "one", {"a": "float16"}).write(7, {"a": large_NxD})
    for dtype in MOST_LOST:
        with pytest.raises(InputError, match="a value is not finite: use --model-dtype float32"):
            Ring(tmp_path, "one", {"a": dtype}).write(7, {"a": endless_NxD})
    assert not list(tmp_path.iterdir())
