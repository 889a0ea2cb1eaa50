"""How well each kind recovers known features: trains on rows of harvest/synthetic.py and scores the dictionaries.

    python tests/benchmarks/ground_truth.py relu jump_relu topk --epochs 5 --directory DIR

Prints mean ± deviation over seeds, one line per kind and width. A second call reuses the rows and finished runs.
"""

import argparse
import statistics
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np

from analysis.quality.ground_truth import compare
from harvest.request import HarvestRequest
from harvest.store import ActivationStore
from harvest.synthetic import SyntheticRequest, Truth, synthesize
from sae_jax.config import SPARSITY_CONTROLS, TrainConfig
from sae_jax.formats import load_dictionary
from sae_jax.run_directory import RunDirectory, default_name
from sae_jax.training.loop import train

COLUMNS = ("mean_max_cosine", "mcc", "f1", "precision", "recall", "explained_variance", "l0", "dead_fraction")


def scores_of(config: TrainConfig, request: SyntheticRequest, store: ActivationStore, directory: Path) -> list[dict]:
    """The settings, held-out metrics and scores of each member."""
    harvest = HarvestRequest(model_name="synthetic").to_json()
    asked = {"harvest": harvest, "synthetic": asdict(request), "train": config.to_json()}
    run = RunDirectory(directory / "runs" / default_name(asked), asked)
    results = run.results or train(config, [store], run, resume=run.path.exists())
    truth, scores = Truth.load(store), []
    for member in results["members"]:
        found = recovered(run.path / "members" / member["id"], store, truth)
        scores.append({**found, **member, **member["metrics"]})
    return scores


def recovered(dictionary: Path, store: ActivationStore, truth: Truth) -> dict:
    """The scores and the L0 of the dictionary in a directory, on the held-out rows of the store."""
    sae, chunks = load_dictionary(dictionary).sae, store.held_out.chunks(4096)
    fires_NxF = np.concatenate([np.asarray(sae.encode(x.astype(np.float32)) != 0) for x in chunks])
    return asdict(compare(np.asarray(sae.W_dec[...]), fires_NxF, truth)) | {"l0": float(fires_NxF.sum(1).mean())}


def main() -> None:
    default = TrainConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activation", nargs="*", default=list(SPARSITY_CONTROLS))
    parser.add_argument("--directory", type=Path, required=True, help="for rows and runs")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--lr", type=float, default=default.lr[0])
    parser.add_argument("--active", type=int, default=default.k[0], help="active features a row (k, target L0)")
    parser.add_argument("--hidden-dim", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=SyntheticRequest.train_rows)
    parser.add_argument("--depth", type=int, default=SyntheticRequest.depth, help="levels of the trees below a root")
    args = parser.parse_args()

    request = SyntheticRequest(train_rows=args.rows, depth=args.depth)
    store = synthesize(request, args.directory)
    config = TrainConfig(
        activation=tuple(args.activation),
        hidden_dim=tuple(args.hidden_dim),
        seed=tuple(args.seeds),
        target_l0=args.active,
        k=args.active,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
    )
    members = scores_of(config, request, store, args.directory)
    print(f"| kind, F | {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for kind, hidden_dim in product(config.activation, config.hidden_dim):
        alike = [m for m in members if (m["activation"], m["hidden_dim"]) == (kind, hidden_dim)]
        values = [[m[name] for m in alike] for name in COLUMNS]
        cells = " | ".join(f"{statistics.mean(v):.3f} ± {statistics.pstdev(v):.3f}" for v in values)
        print(f"| {kind}, {hidden_dim} | {cells} |")


if __name__ == "__main__":
    main()
