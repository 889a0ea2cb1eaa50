"""The ten most costly operations of the slowest step that was measured, from a trace of JAX's profiler."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
from accelerator_parts.figures import Part
from accelerator_parts.training import BLOCK_STEPS, Sizes, compiled_block, config_of, fast_float32, started

SHOWN = 10
HOLDING_OTHERS = ("while", "cond", "call")  # operations whose time is that of others


def measure_profile(part: Part, sizes: Sizes) -> None:
    measured = [line for line in part.figures.lines("steps") if "seconds_per_step" in line]
    slowest = max(measured, key=lambda line: line["seconds_per_step"], default=None)
    slowest = slowest or {"kind": "topk", "F": sizes.widths[-1], "precision": fast_float32()}
    case = {name: slowest[name] for name in ("kind", "F", "precision")}
    part.facts["step"] = case
    config = config_of(case["kind"], case["F"], sizes.batch, sizes.k, case["precision"])
    training, _ = started(config, sizes.d, case["precision"], BLOCK_STEPS)
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            jax.block_until_ready(training.block(training.raw_LxSxBxD))
        seconds: Counter[str] = Counter()
        for path in Path(directory).rglob("*.xplane.pb"):
            for name, nanoseconds in operations(path):
                seconds[name] += nanoseconds / 1e9 / BLOCK_STEPS
    if not seconds:
        cost = compiled_block(config, sizes, case["precision"])[1].cost_analysis() or {}
        figures = {"gigaflops": cost.get("flops", 0.0) / 1e9, "bytes": cost.get("bytes accessed", 0.0)}
        part.add({**case, "operation": "a block, each loop counted once (the trace holds no operation)", **figures})
        return
    total = seconds.total()
    for name, each in seconds.most_common(SHOWN):
        part.add({**case, "operation": name, "seconds_per_step": each, "share_of_all_operations": each / total})
    part.add({**case, "operation": "all operations", "seconds_per_step": total, "share_of_all_operations": 1.0})


def operations(path: Path) -> Iterator[tuple[str, float]]:
    """(name, nanoseconds) of each operation on the device, or on the CPU if the trace has no device."""
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith(("Stream", "XLA Ops")):  # other lines sum up the same operations
                continue
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is None and not devices:  # a call in Python, or the runtime's own
                    continue
                if str(operation or "").startswith(HOLDING_OTHERS) or event.name.startswith("end: "):
                    continue
                kernel = event.name[:60]
                yield (kernel if operation in (None, event.name) else f"{operation} ({kernel})"), event.duration_ns
