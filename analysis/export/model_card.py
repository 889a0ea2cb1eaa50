"""The model card of a dictionary: what it is, how it was trained, what was measured, how to load it."""

from __future__ import annotations

import re

from analysis.runs.families import MEMBER, TRAINING
from analysis.runs.undefined import why_undefined
from sae_jax.formats import Dictionary

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
METRICS = {
    "explained_variance": "explained variance, 1 − E‖x − x̂‖² / E‖x − E x‖²",
    "explained_variance_z": "the same with every dimension counting alike",
    "mse": "squared error, summed over dimensions",
    "l0": "L0, active features a row",
    "l1": "L1, Σ f ‖W_dec‖",
    "cosine": "cosine of row and reconstruction",
    "dead_fraction": "share of features that never fire",
    "ce_recovered": "cross-entropy recovered, of zero ablation",
    "kl_recovered": "KL divergence recovered, of zero ablation",
}


def model_card(dictionary: Dictionary, facts: dict | None, repo: str | None) -> str:
    """Markdown with a hub's front matter. `facts` are those of a run's member (`export.member_facts`)."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="saelens", tags=["sparse-autoencoder", "mechanistic-interpretability"])
    for field, name in (("base_model", dictionary.model_name), ("datasets", dictionary.dataset_path)):
        if name and name != "bundled" and HUB_NAME.fullmatch(name):
            setattr(data, field, name)
    what = f"A sparse autoencoder ({dictionary.cfg['architecture']}) with {dictionary.d_sae:,} features"
    where = f"`{dictionary.hook_name or 'a hook that is not named'}` of `{dictionary.model_name or 'an unnamed model'}`"
    load = f'from_pretrained("{repo}", "{dictionary.name}")' if repo else 'load_from_disk(".")  # where this lies'
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {dictionary.name}",
        f"{what}, for activations of {dictionary.d_in:,} dimensions at {where}.",
        *(
            how_trained(dictionary, facts)
            if facts
            else [f"Read from a directory of {dictionary.format}{unchanged(dictionary)}."]
        ),
        f"## Load it\n```python\nfrom sae_lens import SAE\n\nsae = SAE.{load}",
    ]
    use = "features = sae.encode(x)  # x: raw activations [rows, dimensions]\nreconstruction = sae.decode(features)"
    return "\n\n".join(parts) + f"\n{use}\n```\n"


def unchanged(dictionary: Dictionary) -> str:
    if dictionary.scale is None:
        return ", its tensors unchanged"
    return f", the scale of its rows, {dictionary.scale:.6g}, folded into its weights"


def how_trained(dictionary: Dictionary, facts: dict) -> list[str]:
    member, store, asked = facts["member"], facts["store"], facts["asked"]
    measured = {name: member["metrics"][name] for name in METRICS if member["metrics"].get(name) is not None}
    settings = {name: of.get(name) for of, names in ((member, MEMBER), (asked["train"], TRAINING)) for name in names}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings |= {"control": control} if (control := asked["harvest"].get("control")) else {}
    positions = "all positions" if asked["harvest"]["keep_first_position"] else "all but the first position"
    rows = f"{store['rows']:,} rows: {positions} of windows of {asked['harvest']['seq_len']} tokens, no BOS"
    return [
        "## How it was trained",
        f"By sae-jax {facts['environment']['sae-jax']} on `{dictionary.dataset_path}`, {rows}. "
        "The normalization of rows is folded into the weights, which take raw activations.",
        table("setting", {name: f"{value}" for name, value in settings.items()}),
        "## Held-out metrics",
        "On documents that were never trained on, from these weights, in units of the raw activations.",
        table("metric", {METRICS[name]: f"{value:.4g}" for name, value in measured.items()}),
        *filter(None, [why_undefined(member["metrics"])]),
    ]


def table(head: str, rows: dict[str, str]) -> str:
    return "\n".join([f"| {head} | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
