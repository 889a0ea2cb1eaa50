"""A topk step of SAELens, dictionary_learning and sparsify on the same device, for those that can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from accelerator_parts.figures import Part
from accelerator_parts.training import Sizes

PEERS = {
    "sae_lens": ("tensorfloat32", "bfloat16"),
    "dictionary_learning": ("tensorfloat32", "bfloat16"),
    "sparsify": ("bfloat16",),  # its forward pass is in bfloat16 wherever a GPU has it
}
SCRIPT = Path(__file__).with_name("peer_step.py")


def measure_peers(part: Part, sizes: Sizes) -> None:
    """Each step is measured in a process of its own, which has the memory that JAX leaves it."""
    for peer, precisions in PEERS.items():
        if not find_spec(peer):
            part.add({"peer": peer, "skipped": f"{peer} is not installed"})
            continue
        for width in sizes.widths:
            for precision in precisions:
                line = {"peer": peer, "kind": "topk", "F": width, "precision": precision}
                part.measure(line, lambda p=peer, w=width, how=precision: step_of(p, w, how, sizes, part.left()))


def step_of(peer: str, width: int, precision: str, sizes: Sizes, seconds: float) -> dict:
    numbers = {"d": sizes.d, "f": width, "batch": sizes.batch, "k": sizes.k}
    command = [sys.executable, SCRIPT, peer, precision, *(f"--{name}={number}" for name, number in numbers.items())]
    done = subprocess.run(
        [*map(str, command)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])},
        timeout=max(1.0, seconds),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])
