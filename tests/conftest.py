"""Settings of all tests: a CPU counts as two devices, so that populations are tested on several devices."""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
