"""Settings of JAX for all tests, which must be made before it is imported."""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # so that populations train on several devices on every machine
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")  # so that no array is broadcast by mistake
