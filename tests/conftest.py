"""Two devices of a CPU, on every machine, so that members train on several in all tests of populations."""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
