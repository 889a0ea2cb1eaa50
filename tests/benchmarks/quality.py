"""Dictionaries of our default flags beside those of SAELens, dictionary_learning and sparsify: frontiers at equal L0.

    PYTHONPATH=. python tests/benchmarks/quality.py --to DIR --peers-python PEERS/bin/python --model MODEL \
        --texts A.jsonl B.jsonl --sites 3:resid_mid 12:resid_pre 25:mlp_out --widths 1152 4608

For each text, site and width, everyone trains on the same rows, in the same order and for the same number of steps, at
each of `--l0`, `--seeds` and `--lrs`. Peers run with their own normalization (see `quality_peers.py` for their flags
and for PEERS). Thresholds of peers that rank features in training are moved to the requested L0 on calibration rows, as
ours are. All dictionaries are then measured on the same held-out windows. A table and a figure compare them: the
metrics of a trainer are interpolated to the requested L0, at its best learning rate by explained variance.
`--loss-metrics` trains ours with each of these values of `--loss-metric`.

A dictionary that exists is not trained again, and a measurement that exists is not repeated, so the same command
continues after an interruption.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

import altair as alt
import numpy as np

from analysis.plots.style import save
from analysis.quality.loss_recovered import loss_recovered
from analysis.stats import over_seeds
from harvest.capture import harvest
from harvest.files import read_json, write_json
from harvest.model.language_model import LanguageModel
from harvest.request import HarvestRequest, Site
from harvest.store import ActivationStore
from sae_jax.calibration import calibration_sample, metric_windows, spread_windows, with_l0
from sae_jax.config import METRIC_POWERS
from sae_jax.evaluate import evaluate
from sae_jax.formats import Dictionary, load_dictionary

OURS = {"topk": "k", "batch_topk": "k", "matryoshka": "k", "jump_relu": "target_l0", "relu": "target_l0"}
PEERS = {  # by the kind of ours that they are compared with
    "topk": ("saelens-topk", "dictionary_learning-topk", "sparsify-topk"),
    "batch_topk": ("saelens-batchtopk", "dictionary_learning-batchtopk"),
    "matryoshka": ("saelens-matryoshka",),
    "jump_relu": ("saelens-jumprelu",),
}
METRICS = ("explained_variance", "explained_variance_z", "ce_recovered", "kl_recovered")


@dataclass(frozen=True)
class Trained:
    """A dictionary on disk."""

    trainer: str
    l0: int
    lr: float
    seed: int
    path: Path

    @property
    def name(self) -> str:
        return f"{self.trainer}-k{self.l0}-lr{self.lr:g}-s{self.seed}"


def train_ours(cell: Path, site: Site, width: int, text: Path, asked: argparse.Namespace) -> list[Trained]:
    run = cell / "ours"
    grid = {"--seed": asked.seeds, "--lr": asked.lrs, "--loss-metric": asked.loss_metrics}
    grid |= {f"--{OURS[kind].replace('_', '-')}": asked.l0 for kind in asked.kinds}
    flags = ["--model-name", asked.model, "--dataset", text, "--layer", site.layer, "--hook", site.hook]
    flags += ["--n-samples", asked.n_samples, "--seq-len", asked.seq_len, "--epochs", asked.epochs]
    flags += ["--batch-size", asked.batch, "--hidden-dim", width, "--activation", *asked.kinds, "--ce-windows", 0]
    flags += ["--snapshots", 0, "--run-dir", run, "--cache-dir", asked.to / "cache", "--quiet", *sum(grid.items(), ())]
    flat = [str(part) for flag in flags for part in (flag if isinstance(flag, list) else [flag])]
    if not (run / "results.json").exists():
        subprocess.run([sys.executable, "main.py", *flat], check=True)
    return [
        Trained(
            f"{m['activation']}, {m['loss_metric']}",
            round(m["k"] or m["target_l0"]),
            m["lr"],
            m["seed"],
            run / "members" / m["id"],
        )
        for m in read_json(run / "results.json", "train again")["members"]
        if m["metrics"]
    ]


def train_peers(cell: Path, store: ActivationStore, width: int, asked: argparse.Namespace) -> list[Trained]:
    trainers = [
        trainer
        for kind in asked.kinds
        for trainer in PEERS.get(kind, ())
        if asked.peers_python and trainer in asked.peers
    ]
    trained = [
        Trained(*setting, cell / "peers" / f"{setting[0]}-k{setting[1]}-lr{setting[2]:g}-s{setting[3]}")
        for setting in product(trainers, asked.l0, asked.lrs, asked.seeds)
    ]
    for peer in trained:
        if not peer.path.exists():
            flags = ["--to", peer.path, "--f", width, "--k", peer.l0, "--lr", peer.lr, "--seed", peer.seed]
            flags += ["--batch", asked.batch, "--epochs", asked.epochs]
            script = "tests/benchmarks/quality_peers.py"
            command = [asked.peers_python, script, store.directory, peer.trainer, *flags]
            subprocess.run(list(map(str, command)), check=True, env={"PYTHONPATH": "."})
    return trained


def measure(cell: Path, store: ActivationStore, trained: list[Trained], model: LanguageModel, windows: int) -> dict:
    """{name: metrics} of all dictionaries, on held-out windows that are not for calibration."""
    path = cell / "measured.json"
    measured = read_json(path, "delete it") if path.exists() else {}
    raw_NxD = calibration_sample(store.held_out)
    if new := {t.name: at_equal_l0(t, raw_NxD).sae for t in trained if t.name not in measured}:
        used_W = metric_windows(store.held_out)
        metrics = {name: e.metrics for name, e in evaluate(new, store.held_out, store.mean, used_W).items()}
        lost = loss_recovered(model, store, new, spread_windows(used_W, windows))
        measured |= {name: metrics[name] | lost[name]["metrics"] for name in new}
        write_json(path, measured)
    return measured


def at_equal_l0(trained: Trained, raw_NxD: np.ndarray) -> Dictionary:
    """The dictionary; a peer's that ranks features in training gets the threshold for its k, as ours have."""
    dictionary, ranks = load_dictionary(trained.path), ("batchtopk", "matryoshka")
    return with_l0(dictionary, raw_NxD, trained.l0) if trained.trainer.endswith(ranks) else dictionary


def at_l0(points: list[dict], l0: float, metric: str) -> float | None:
    """The metric at an L0, on a line through log(L0) of the points on both sides, or of the nearest two within 15%."""
    points = sorted(points, key=lambda point: point["l0"])
    x, y = np.log([p["l0"] for p in points]), [p[metric] for p in points]
    right = int(np.clip(np.searchsorted(x, np.log(l0)), 1, len(x) - 1)) if len(x) > 1 else 0
    if not x[0] - 0.15 <= np.log(l0) <= x[-1] + 0.15:
        return None
    if len(x) == 1:
        return y[0]
    slope = (y[right] - y[right - 1]) / max(x[right] - x[right - 1], 1e-9)
    return float(y[right] + slope * (np.log(l0) - x[right]))


def table_of(trained: list[Trained], measured: dict, asked: argparse.Namespace) -> list[dict]:
    """A row for each trainer and L0: means over seeds of the metrics at that L0, at the best learning rate."""
    points = defaultdict(list)
    for t in trained:
        points[t.trainer, t.lr, t.seed].append(measured[t.name])
    rows = []
    for trainer in dict.fromkeys(t.trainer for t in trained):
        for l0 in asked.l0:
            by_lr = {
                lr: {m: [at_l0(points[trainer, lr, s], l0, m) for s in asked.seeds] for m in METRICS}
                for lr in asked.lrs
            }
            by_lr = {lr: values for lr, values in by_lr.items() if None not in values[METRICS[0]]}
            if not by_lr:
                continue
            best = max(by_lr, key=lambda lr: np.mean(by_lr[lr][METRICS[0]]))
            estimates = {m: over_seeds(by_lr[best][m]) for m in METRICS}
            nearest = [measured[t.name] for t in trained if (t.trainer, t.lr, t.l0) == (trainer, best, l0)]
            reached = {m: float(np.mean([n[m] for n in nearest])) for m in ("l0", "dead_fraction")}
            rows.append({"trainer": trainer, "asked": l0, "lr": best, **reached, "at L0": estimates})
    return rows


def printed(rows: list[dict]) -> str:
    heads = ["trainer", "L0", "lr", "reached", *METRICS, "dead"]
    lines = [heads, ["---"] * len(heads)]
    for row in sorted(rows, key=lambda row: (row["asked"], row["trainer"])):
        cells = [
            f"{e.mean:.4f}" + (f" ± {(e.high - e.low) / 2:.4f}" if e.low is not None else "")
            for e in row["at L0"].values()
        ]
        start = [row["trainer"], str(row["asked"]), f"{row['lr']:g}", f"{row['l0']:.1f}"]
        lines.append([*start, *cells, f"{row['dead_fraction']:.1%}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(trained: list[Trained], measured: dict) -> alt.Chart:
    points = [{"trainer": t.trainer, "lr": t.lr, "seed": t.seed, **measured[t.name]} for t in trained]
    x = alt.X("l0:Q", title="L0 (log scale)").scale(type="log", zero=False)
    charts = [
        alt.Chart(alt.Data(values=points))
        .mark_point()
        .encode(x, alt.Y(f"{metric}:Q").scale(zero=False), alt.Color("trainer:N"), alt.Shape("lr:N"))
        for metric in ("explained_variance", "ce_recovered")
    ]
    return alt.hconcat(*charts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--peers-python", type=Path)
    parser.add_argument("--peers", nargs="*", default=list(chain(*PEERS.values())))
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--texts", type=Path, nargs="+", default=[Path("bundled")])
    parser.add_argument("--sites", nargs="+", required=True, metavar="LAYER:HOOK")
    parser.add_argument("--kinds", nargs="+", choices=list(OURS), default=list(OURS))
    for name, numbers in (("--widths", [1152, 4608]), ("--l0", [16, 32, 64]), ("--seeds", [0, 1, 2])):
        parser.add_argument(name, type=int, nargs="+", default=numbers)
    parser.add_argument("--loss-metrics", nargs="+", choices=list(METRIC_POWERS), default=["raw"])
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    settings = (("--n-samples", 500), ("--seq-len", 128), ("--epochs", 3), ("--batch", 256), ("--ce-windows", 64))
    for name, number in settings:
        parser.add_argument(name, type=int, default=number)
    asked = parser.parse_args()
    model = None
    for text, where in product(asked.texts, asked.sites):
        layer, hook = where.split(":")
        site = Site(int(layer), hook)
        shape = {"n_samples": asked.n_samples, "seq_len": asked.seq_len}
        request = HarvestRequest(model_name=asked.model, dataset=str(text), layer=site.layer, hook=hook, **shape)
        store = harvest(request, asked.to / "cache")[site]
        model = model or LanguageModel.load(store.manifest["model"]["location"])
        for width in asked.widths:
            cell = asked.to / f"{text.stem}-{layer}-{hook}-f{width}"
            trained = train_ours(cell, site, width, text, asked) + train_peers(cell, store, width, asked)
            measured = measure(cell, store, trained, model, asked.ce_windows)
            save(figure(trained, measured), cell / "frontier")
            print(f"\n{cell.name}\n\n{printed(table_of(trained, measured, asked))}", flush=True)
