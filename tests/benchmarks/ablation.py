"""This benchmark measures what each single choice of our training contributes, as differences from the defaults.

    PYTHONPATH=. python tests/benchmarks/ablation.py --to DIR --model MODEL \
        --cells docs.jsonl:5:resid_mid code.jsonl:20:resid_pre docs.jsonl:12:mlp_out

A cell is a text, a layer and a hook. On each, every kind is trained with the defaults and with one choice changed, at
the same seeds and on the same batches. Prints the metrics of the defaults, and below them the mean difference of each
choice with its 95% interval over seeds. A run that exists is not trained again.
"""

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

from analysis.stats import over_seeds
from harvest.files import read_json
from sae_jax.config import TrainConfig, flags_of_kind

OF_MEMBERS = {  # by what is changed: settings of a member
    "defaults": {},
    "loss in standardized units": {"loss_metric": "standardized"},
    "loss in units of the root of the deviation": {"loss_metric": "sqrt_std"},
    "rows divided by their mean norm": {"normalization": "mean_norm"},
    "decoder as fast as the encoder": {"decoder_lr_ratio": 1},
    "no AuxK": {"aux_coefficient": 0},
    "dead features not revived": {"dead_rule": "none"},
}
OF_RUNS = {  # flags of a run
    "decoder not fitted": ("--no-fit-decoder",),
    "as fast, not fitted": ("--no-fit-decoder", "--decoder-lr-ratio", "1"),
    "as fast, not fitted, free norms": ("--no-fit-decoder", "--decoder-lr-ratio", "1", "--no-unit-norm-decoder"),
}
OF_STARTS = {  # by the norm that encoder rows start with, where the default is at most 1, by least squares
    "encoder starts at norm 1": "1.0",
    "encoder starts at norm 0.1, as in SAELens": "0.1",
}
START = "import sys, main; from sae_jax.training import population; "
START += "population.encoder_scale = lambda *_: {}; sys.exit(main.run_as_command(sys.argv[1:]))"
METRICS = ("explained_variance", "explained_variance_z", "ce_recovered", "kl_recovered", "l0")


def trained(
    cell: str, name: str, flags: list, asked: argparse.Namespace, program: tuple[str, ...] = ("main.py",)
) -> list[dict]:
    """The members of a run."""
    text, layer, hook = cell.split(":")
    run = asked.to / f"{Path(text).stem}-{layer}-{hook}" / name.replace(" ", "-").replace(",", "")
    if not (run / "results.json").exists():
        site = ["--model-name", asked.model, "--dataset", text, "--layer", layer, "--hook", hook]
        sizes = ["--n-samples", asked.n_samples, "--seq-len", 128, "--epochs", 3, "--batch-size", 256]
        sizes += ["--hidden-dim", asked.width, "--seed", *asked.seeds, "--ce-windows", asked.ce_windows]
        files = ["--cache-dir", asked.to / "cache", "--run-dir", run, "--snapshots", 0, "--quiet"]
        command = [sys.executable, *program, *site, *sizes, *files, *flags]
        subprocess.run(list(map(str, command)), check=True)
    return read_json(run / "results.json", "train again")["members"]


def choice_of(member: dict) -> str:
    """The choice of OF_MEMBERS with which this member was trained."""
    usual = {name: getattr(TrainConfig, name)[0] for settings in OF_MEMBERS.values() for name in settings}
    changed = {name: member[name] for name in usual if member[name] not in (None, usual[name])}
    return next(choice for choice, settings in OF_MEMBERS.items() if settings == changed)


def of_cell(cell: str, asked: argparse.Namespace) -> dict[tuple[str, str], dict[int, dict]]:
    """{(choice, kind): {seed: metrics}}."""
    entries = [
        {"activation": kind, **settings}
        for settings, kind in product(OF_MEMBERS.values(), asked.kinds)
        if "aux_coefficient" not in settings or "aux_coefficient" in flags_of_kind(kind)
    ]
    asked.to.mkdir(parents=True, exist_ok=True)
    listed = asked.to / "members.json"
    listed.write_text(json.dumps(entries))
    results = [(choice_of(m), m) for m in trained(cell, "members", ["--members", listed], asked)]
    for choice, flags in OF_RUNS.items():
        results += [(choice, m) for m in trained(cell, choice, ["--activation", *asked.kinds, *flags], asked)]
    for choice, norm in OF_STARTS.items():
        program = ("-c", START.format(norm))
        results += [(choice, m) for m in trained(cell, choice, ["--activation", *asked.kinds], asked, program)]
    table: dict[tuple[str, str], dict[int, dict]] = {}
    for choice, member in results:
        table.setdefault((choice, member["activation"]), {})[member["seed"]] = member["metrics"]
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--cells", nargs="+", required=True, metavar="TEXT:LAYER:HOOK")
    parser.add_argument("--kinds", nargs="+", default=["topk", "jump_relu"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for flag, number in (("--width", 1152), ("--n-samples", 300), ("--ce-windows", 40)):
        parser.add_argument(flag, type=int, default=number)
    asked = parser.parse_args()
    for cell in asked.cells:
        table = of_cell(cell, asked)
        print(f"\n{cell}\n\n| | {' | '.join(METRICS)} |\n|---|{'---|' * len(METRICS)}")
        for (choice, kind), by_seed in sorted(table.items(), key=lambda item: asked.kinds.index(item[0][1])):
            usual = {} if choice == "defaults" else table["defaults", kind]
            cells = []
            for name in METRICS:
                values = [metrics[name] - (usual[seed][name] if usual else 0) for seed, metrics in by_seed.items()]
                cells.append(over_seeds(values).plus_minus("+.4f" if usual else ".4f"))
            print(f"| {kind}, {choice} | {' | '.join(cells)} |", flush=True)
