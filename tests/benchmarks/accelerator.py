"""Everything that needs an accelerator, measured in one call of under 8 minutes.

    PYTHONPATH=.:tests python tests/benchmarks/accelerator.py --to figures.json
    PYTHONPATH=.:tests python tests/benchmarks/accelerator.py --to figures.json --small

Needs jax, flax, optax, orbax-checkpoint, numpy and safetensors; pytest for the tests, and each peer for its line. The
file is complete after each measurement. A part has a share of the time, and what it leaves goes to the parts after it.
What there is no time for, and what fails, is named in the table. --small has small sizes and two kinds, for a CPU.
"""

import argparse
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
from accelerator_parts.agreement import measure_agreement
from accelerator_parts.fast_tests import measure_tests
from accelerator_parts.feeding import measure_feed
from accelerator_parts.figures import Figures, Part
from accelerator_parts.peers import measure_peers
from accelerator_parts.profiling import measure_profile
from accelerator_parts.top_k import measure_top_k
from accelerator_parts.training import FULL, SMALL, Sizes, measure_memory, measure_populations, measure_steps

SHARES = {  # of the time, in the order in which the parts run
    "agreement": 0.15,
    "steps": 0.27,
    "populations": 0.18,
    "top_k": 0.05,
    "feed": 0.10,
    "memory": 0.06,
    "profile": 0.05,
    "peers": 0.05,
    "fast_tests": 0.09,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--small", action="store_true", help="small sizes, to try it on a CPU")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES), metavar="NAME")
    args = parser.parse_args()
    ends = time.perf_counter() + 60 * args.minutes
    sizes = SMALL if args.small else FULL
    measures: dict[str, Callable[[Part], None]] = {
        "agreement": lambda part: measure_agreement(part, sizes),
        "steps": lambda part: measure_steps(part, sizes),
        "populations": lambda part: measure_populations(part, sizes),
        "top_k": lambda part: measure_top_k(part, sizes),
        "feed": lambda part: measure_feed(part, sizes),
        "memory": lambda part: measure_memory(part, sizes),
        "profile": lambda part: measure_profile(part, sizes),
        "peers": lambda part: measure_peers(part, sizes),
        "fast_tests": lambda part: measure_tests(part, args.small),
    }
    facts = machine(sizes)
    print(", ".join(f"{name} {value}" for name, value in facts.items()) + "\n", flush=True)
    figures, names = Figures(args.to, facts), [name for name in SHARES if name in args.parts]
    for number, name in enumerate(names):
        share = SHARES[name] / sum(SHARES[later] for later in names[number:])
        part = figures.run(name, share * (ends - time.perf_counter()), measures[name])
        print(part.table(), flush=True)


def machine(sizes: Sizes) -> dict:
    device = jax.devices()[0]
    facts = {"date": str(date.today()), "device": device.device_kind, "backend": device.platform}
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:  # brought along as a folder
            facts[name] = "of unknown version"
    return facts | {"D": sizes.d, "batch": sizes.batch, "k": sizes.k}


if __name__ == "__main__":
    main()
