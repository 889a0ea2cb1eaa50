"""Dictionaries of our default flags beside those of SAELens, dictionary_learning and sparsify: frontiers at equal L0.

    PYTHONPATH=. python tests/benchmarks/quality.py --to DIR --peers-python PEERS/bin/python --model MODEL \
        --texts A.jsonl B.jsonl --sites 3:resid_mid 12:resid_pre 25:mlp_out --widths 1152 4608

For each text, site and width, everyone trains on the same rows, in the same order and for the same number of steps.
Everyone trains at each of `--lrs` at the first of `--l0` and `--seeds`; the table shows the explained variance at each,
and both metrics at the best. Peers go on at their best rate, our kinds at the default rate. There they train at all of
`--l0`: with all seeds at the first, with `--other-seeds` at the others.
Peers run with their own normalization (see `quality_peers.py` for their flags and for PEERS). Thresholds of peers that
rank features in training are moved to the requested L0 on calibration rows, as ours are. All dictionaries are then
measured on the same held-out windows, and the metrics of each trainer are interpolated to the requested L0. Prints a
table for each site, with 95% intervals over seeds, and the differences from the best peer, with 95% intervals over
documents; saves a figure.

A dictionary that exists is not trained again, and a measurement that exists is not repeated, so the same command
continues after an interruption.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

import altair as alt
import numpy as np

from analysis.plots.style import save
from analysis.quality.loss_recovered import scores, sums_per_document
from analysis.stats import Estimate, over_seeds, ratio_interval
from harvest.capture import harvest
from harvest.files import read_json, write_json
from harvest.model.language_model import LanguageModel
from harvest.request import HarvestRequest, Site
from harvest.store import ActivationStore
from sae_jax.calibration import calibration_sample, metric_windows, spread_windows, with_l0
from sae_jax.config import TrainConfig
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
NEAR = 0.15  # how far, in log(L0), a dictionary may be from the requested L0 to be compared there


@dataclass(frozen=True)
class Trained:
    """A dictionary on disk, and how it was trained."""

    cell: Path
    trainer: str
    l0: int
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.trainer}-k{self.l0}-lr{self.lr:g}-s{self.seed}"

    @property
    def path(self) -> Path:
        return self.cell / "dictionaries" / self.name


def train(wanted: list[Trained], store: ActivationStore, width: int, text: Path, asked: argparse.Namespace) -> None:
    """Train the dictionaries that do not exist yet."""
    missing = [t for t in wanted if not t.path.exists()]
    if ours := [t for t in missing if t.trainer in OURS]:
        train_ours(ours, store, width, text, asked)
    for peer in missing:
        if peer.trainer not in OURS:
            flags = ["--to", peer.path, "--f", width, "--k", peer.l0, "--lr", peer.lr, "--seed", peer.seed]
            flags += ["--batch", asked.batch, "--epochs", asked.epochs]
            script = "tests/benchmarks/quality_peers.py"
            command = [asked.peers_python, script, store.directory, peer.trainer, *flags]
            subprocess.run(list(map(str, command)), check=True, env={"PYTHONPATH": "."})


def train_ours(ours: list[Trained], store: ActivationStore, width: int, text: Path, asked: argparse.Namespace) -> None:
    """Train dictionaries as one population with the default flags, and move them to their paths."""
    cell = ours[0].cell
    run, listed = cell / "run", cell / "members.json"
    cell.mkdir(parents=True, exist_ok=True)
    entries = [{"activation": t.trainer, OURS[t.trainer]: t.l0, "lr": t.lr, "seed": t.seed} for t in ours]
    listed.write_text(json.dumps(entries))
    layer, hook = store.manifest["layer"], store.manifest["hook"]
    flags = ["--model-name", asked.model, "--dataset", text, "--layer", layer, "--hook", hook, "--members", listed]
    flags += ["--n-samples", asked.n_samples, "--seq-len", asked.seq_len, "--held-out", asked.held_out]
    flags += ["--max-norm-ratio", asked.max_norm_ratio]
    flags += ["--epochs", asked.epochs, "--batch-size", asked.batch, "--hidden-dim", width]
    flags += ["--ce-windows", 0, "--snapshots", 0]
    flags += ["--run-dir", run, "--cache-dir", asked.to / "cache", "--quiet", "--force"]
    subprocess.run([sys.executable, "main.py", *map(str, flags)], check=True)
    trained = {(t.trainer, t.l0, t.lr, t.seed): t for t in ours}
    for m in read_json(run / "results.json", "train again")["members"]:
        setting = m["activation"], round(m[OURS[m["activation"]]]), m["lr"], m["seed"]
        trained[setting].path.parent.mkdir(exist_ok=True)
        (run / "members" / m["id"]).rename(trained[setting].path)
    shutil.rmtree(run)


class Measured:
    """Metrics of dictionaries on the same held-out windows, which were not used for calibration. Kept on disk."""

    def __init__(self, cell: Path, store: ActivationStore, model: LanguageModel, windows: int):
        self.path, self.store, self.model, self.windows = cell / "measured.json", store, model, windows
        self.metrics = read_json(self.path, "delete it") if self.path.exists() else {}

    def add(self, trained: list[Trained], loss: bool) -> None:
        """Measure the reconstruction of the dictionaries, and with `loss` also the language model's loss with them."""
        last = "ce_sae_G" if loss else "l0"
        lacking = [t for t in trained if last not in self.metrics.get(t.name, {})]
        if not lacking:
            return
        raw_NxD = calibration_sample(self.store.held_out)
        saes = {t.name: at_equal_l0(t, raw_NxD).sae for t in lacking}
        used_W = metric_windows(self.store.held_out)
        for name, of in evaluate(saes, self.store.held_out, self.store.mean, used_W).items():
            self.metrics.setdefault(name, {}).update(of.metrics)
        if loss:
            windows_W = spread_windows(used_W, self.windows)
            for name, sums in sums_per_document(self.model, self.store, saes, windows_W).items():
                metrics = scores({key: of_G.sum() for key, of_G in sums.items()})
                self.metrics[name] |= {key: float(value) for key, value in metrics.items()}
                self.metrics[name] |= {f"{key}_G": of_G.tolist() for key, of_G in sums.items()}
        write_json(self.path, self.metrics)


def at_equal_l0(trained: Trained, raw_NxD: np.ndarray) -> Dictionary:
    """The dictionary; a peer's that ranks features in training gets the threshold for its k, as ours have."""
    dictionary, ranks = load_dictionary(trained.path), ("batchtopk", "matryoshka")
    return with_l0(dictionary, raw_NxD, trained.l0) if trained.trainer.endswith(ranks) else dictionary


def best_rates(tried: list[Trained], measured: Measured) -> dict[str, float]:
    """{trainer: the learning rate with the best explained variance near the L0}."""

    def rank(t: Trained) -> tuple[float, float]:
        of = measured.metrics[t.name]
        return -max(abs(np.log(of["l0"] / t.l0)), NEAR), of["explained_variance"]

    return {t.trainer: t.lr for t in sorted(tried, key=rank)}


def at_l0(points: list[dict], l0: float, metric: str) -> np.ndarray:
    """The metric at an L0: on a line through log(L0) of the points on both sides of it, or of the nearest two."""
    points = sorted(points, key=lambda point: point["l0"])
    x, y = np.log([p["l0"] for p in points]), np.array([p[metric] for p in points])
    if len(x) == 1:
        return y[0]
    right = int(np.clip(np.searchsorted(x, np.log(l0)), 1, len(x) - 1))
    share = (np.log(l0) - x[right - 1]) / max(x[right] - x[right - 1], 1e-9)
    return y[right - 1] + share * (y[right] - y[right - 1])


@dataclass(frozen=True)
class Row:
    """The dictionaries of a trainer as points, to be compared at an L0."""

    trainer: str
    l0: int
    tried: dict[float, dict]  # by learning rate, if several were tried at this L0
    best: float  # the best of these rates
    frontier: list[dict]  # of the first seed
    points: list[dict]  # of all seeds, trained for this L0

    @property
    def comparable(self) -> bool:
        reached = np.log([p["l0"] for p in self.frontier])
        return reached.min() - NEAR < np.log(self.l0) < reached.max() + NEAR

    def metric(self, name: str) -> Estimate:
        """At the L0, over seeds. Each is moved along the frontier of the first seed."""
        moves = [at_l0(self.frontier, self.l0, name) - at_l0(self.frontier, p["l0"], name) for p in self.points]
        return over_seeds([float(p[name] + move) for p, move in zip(self.points, moves, strict=True)])

    def cells(self, rows: list[Row]) -> list[str]:
        metrics = [self.metric(name).plus_minus(".4f") if self.comparable else "" for name in METRICS]
        l0, dead = (np.mean([p[name] for p in self.points]) for name in ("l0", "dead_fraction"))
        tried = " ".join(f"{p['explained_variance']:.4f}" for p in self.tried.values())
        best = " ".join(f"{self.tried[self.best][m]:.4f}" for m in ("explained_variance", "ce_recovered") if self.tried)
        of = [self.trainer, str(self.l0), tried, best, f"{l0:.1f}"]
        return [*of, *metrics, f"{dead:.1%}", self.against_peers(rows)]

    def against_peers(self, rows: list[Row]) -> str:
        """How much more of the loss is recovered than by the best peer of the family, with its interval over documents.

        It compares the first seeds.
        """
        family = [row for row in rows if row.trainer in PEERS.get(self.trainer, ()) and row.l0 == self.l0]
        peers = [peer for peer in family if peer.comparable]
        if not peers:
            return ""
        best = max(peers, key=lambda peer: at_l0(peer.frontier, self.l0, "ce_recovered"))
        fewer_G = at_l0(best.frontier, self.l0, "ce_sae_G") - at_l0(self.frontier, self.l0, "ce_sae_G")
        span_G = np.subtract(self.points[0]["ce_zero_G"], self.points[0]["ce_clean_G"])
        interval = ratio_interval(fewer_G, span_G)
        bounds = f" ({interval[0]:+.4f} to {interval[1]:+.4f})" if interval else ""
        return f"{fewer_G.sum() / span_G.sum():+.4f}{bounds}"


def table(tried: list[Trained], best: dict[str, float], final: list[Trained], measured: Measured) -> str:
    rows = []
    for l0, trainer in product(dict.fromkeys(t.l0 for t in final), dict.fromkeys(t.trainer for t in final)):
        of = [t for t in final if t.trainer == trainer]
        by_rate = {t.lr: measured.metrics[t.name] for t in tried if (t.trainer, t.l0) == (trainer, l0)}
        of_first_seed, at_this_l0 = (
            [measured.metrics[t.name] for t in some]
            for some in ([t for t in of if t.seed == of[0].seed], [t for t in of if t.l0 == l0])
        )
        rows.append(Row(trainer, l0, by_rate, best[trainer], of_first_seed, at_this_l0))
    rates = f"explained variance at {' '.join(f'{lr:g}' for lr in dict.fromkeys(t.lr for t in tried))}"
    heads = ["trainer", "L0", rates, "with CE recovered at the best", "reached", *METRICS, "dead"]
    heads += ["more loss recovered than the best peer"]
    lines = [heads, ["---"] * len(heads), *(row.cells(rows) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(trained: list[Trained], measured: Measured) -> alt.Chart:
    points = [
        {"trainer": t.trainer, "seed": t.seed} | {name: measured.metrics[t.name][name] for name in ("l0", *METRICS)}
        for t in trained
    ]
    x = alt.X("l0:Q", title="L0 (log scale)").scale(type="log", zero=False)
    charts = [
        alt.Chart(alt.Data(values=points))
        .mark_point()
        .encode(x, alt.Y(f"{metric}:Q").scale(zero=False), alt.Color("trainer:N"))
        for metric in ("explained_variance", "ce_recovered")
    ]
    return alt.hconcat(*charts)


def compare(cell: Path, store: ActivationStore, model: LanguageModel, width: int, text: Path, asked) -> None:
    """Train and measure everyone at one site, text and width; print the table and save the figure."""
    peers = [trainer for kind in asked.kinds for trainer in PEERS.get(kind, ()) if trainer in asked.peers]
    trainers, (first_l0, *other_l0s) = [*asked.kinds, *(peers if asked.peers_python else ())], asked.l0
    measured = Measured(cell, store, model, asked.ce_windows)
    tried = [Trained(cell, trainer, first_l0, lr, asked.seeds[0]) for trainer in trainers for lr in asked.lrs]
    train(tried, store, width, text, asked)
    measured.add(tried, loss=False)
    settings = [*product((first_l0,), asked.seeds), *product(other_l0s, asked.other_seeds)]
    best = best_rates(tried, measured)
    measured.add([t for t in tried if t.lr == best[t.trainer]], loss=True)
    rates = {name: TrainConfig.lr[0] if name in OURS else lr for name, lr in best.items()}
    final = [Trained(cell, name, l0, rates[name], seed) for name in trainers for l0, seed in settings]
    train(final, store, width, text, asked)
    measured.add(final, loss=True)
    save(figure(final, measured), cell / "frontier")
    print(f"\n{cell.name}\n\n{table(tried, best, final, measured)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--peers-python", type=Path)
    parser.add_argument("--peers", nargs="*", default=list(chain(*PEERS.values())))
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--texts", type=Path, nargs="+", default=[Path("bundled")])
    parser.add_argument("--sites", nargs="+", required=True, metavar="LAYER:HOOK")
    parser.add_argument("--kinds", nargs="+", choices=list(OURS), default=list(OURS))
    for name, numbers in (("--widths", [1152, 4608]), ("--seeds", [0, 1, 2]), ("--other-seeds", [0, 1, 2])):
        parser.add_argument(name, type=int, nargs="+", default=numbers)
    parser.add_argument("--l0", type=int, nargs="+", default=[32, 16, 64])
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--held-out", type=float, default=0.25)
    parser.add_argument("--max-norm-ratio", type=float, default=10.0, help="as for main.py; 0 keeps all rows")
    settings = (("--n-samples", 800), ("--seq-len", 64), ("--epochs", 3), ("--batch", 256), ("--ce-windows", 60))
    for name, number in settings:
        parser.add_argument(name, type=int, default=number)
    asked = parser.parse_args()
    model = None
    for text, where in product(asked.texts, asked.sites):
        layer, hook = where.split(":")
        site = Site(int(layer), hook)
        shape = {name: getattr(asked, name) for name in ("n_samples", "seq_len", "held_out", "max_norm_ratio")}
        request = HarvestRequest(model_name=asked.model, dataset=str(text), layer=site.layer, hook=hook, **shape)
        store = harvest(request, asked.to / "cache")[site]
        model = model or LanguageModel.load(store.manifest["model"]["location"])
        for width in asked.widths:
            compare(asked.to / f"{text.stem}-{layer}-{hook}-f{width}", store, model, width, text, asked)
