"""The model card of a dictionary: what it is, how it was trained, what was measured, how to load it."""

from __future__ import annotations

import re

from sae_jax.formats import Dictionary

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SETTINGS = ("activation", "k", "target_l0", "sparsity", "lr", "seed", "warmup", "normalization", "aux_coefficient")
METRICS = {
    "explained_variance": "explained variance, 1 − E‖x − x̂‖² / E‖x − E x‖²",
    "explained_variance_z": "the same with every dimension counting alike",
    "mse": "squared error, summed over dimensions",
    "l0": "L0, active features a row",
    "l1": "L1, Σ |f| ‖W_dec‖",
    "cosine": "cosine of row and reconstruction",
    "dead_fraction": "share of features that never fire",
}


def model_card(dictionary: Dictionary, facts: dict | None, repo: str | None) -> str:
    """Markdown with a hub's front matter. `facts` are those of a run's member (`export.member_facts`)."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="saelens", tags=["sparse-autoencoder", "mechanistic-interpretability"])
    metadata = dictionary.cfg["metadata"]
    for field, name in (("base_model", dictionary.model_name), ("datasets", metadata.get("dataset_path"))):
        if name and name != "bundled" and HUB_NAME.fullmatch(name):
            setattr(data, field, name)
    what = f"A sparse autoencoder ({dictionary.cfg['architecture']}) with {dictionary.d_sae:,} features, for"
    where = f"`{dictionary.hook_name or 'an unnamed hook'}` of `{dictionary.model_name or 'an unnamed model'}`"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {dictionary.name}",
        f"{what} activations of {dictionary.d_in:,} dimensions at {where}.",
        *(how_trained(facts) if facts else [f"Its weights are those of a directory of {dictionary.format}, unchanged."]),
        "## Load it\n```python\nfrom sae_lens import SAE\n",
    ]
    loads = ['sae = SAE.load_from_disk(".")  # the directory of this file']
    if repo:
        loads = [f'sae = SAE.from_pretrained("{repo}", "{dictionary.name}")']
    loads += ["features = sae.encode(x)  # x: raw activations [rows, dimensions]", "reconstruction = sae.decode(features)"]
    return "\n\n".join(parts) + "\n".join(loads) + "\n```\n"


def how_trained(facts: dict) -> list[str]:
    member, store, asked = facts["member"], facts["store"], facts["asked"]
    settings = {name: member[name] for name in SETTINGS if member[name] is not None}
    settings |= {name: asked["train"][name] for name in ("epochs", "batch_size", "unit_norm_decoder")}
    positions = "all positions" if asked["harvest"]["keep_first_position"] else "all but the first position"
    rows = f"{store['rows']['train']:,} rows: {positions} of windows of {asked['harvest']['seq_len']} tokens, no BOS"
    return [
        "## How it was trained",
        f"By sae-jax {facts['environment']['sae-jax']} on `{store['dataset']['location']}`, {rows}. The normalization "
        "of rows is folded into the weights, which take raw activations.",
        table(("setting", "value"), {name: f"{value}" for name, value in settings.items()}),
        "## Held-out metrics\nOn documents that were never trained on, from these files, in units of the raw activations.",
        table(("metric", "value"), {text: f"{member['metrics'][name]:.4g}" for name, text in METRICS.items()}),
    ]


def table(head: tuple[str, str], rows: dict[str, str]) -> str:
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows.items())])
