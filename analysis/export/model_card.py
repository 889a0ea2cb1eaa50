"""The model card of a dictionary: its kind and size, how it was trained, its metrics, and how to load it."""

from __future__ import annotations

import re
from pathlib import Path

from analysis.runs.families import MEMBER, TRAINING
from analysis.runs.finished import FinishedRun
from analysis.runs.remarks import remark_on_loss_recovered
from harvest.errors import InputError
from harvest.files import parse_json
from harvest.request import IMPORTED
from sae_jax.formats import Dictionary

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
CARD_METRICS = {
    "explained_variance": "explained variance, 1 − E‖x − x̂‖² / E‖x − E x‖²",
    "explained_variance_z": "explained variance with all dimensions weighted equally",
    "mse": "squared error, summed over dimensions",
    "l0": "L0, active features per row",
    "l1": "L1, Σ f ‖W_dec‖",
    "cosine": "cosine of activation and reconstruction",
    "dead_fraction": "share of features that never fire",
    "ce_recovered": "cross-entropy recovered, relative to zero ablation",
    "kl_recovered": "KL divergence recovered, relative to zero ablation",
}


def member_facts(source: Path, member_id: str | None) -> dict | None:
    """The run's records of a member ("member", "asked", "store", "environment"); None if `source` is no run."""
    if not (source / "config.json").exists() or "asked" not in parse_json(source / "config.json", "choose another"):
        if member_id is not None:
            raise InputError(f"--member {member_id}: {source} is a single dictionary, not a run: leave --member out")
        return None
    run = FinishedRun.open(source)
    name = run.only(member_id)
    facts = {"member": run.members[name], "store": run.store_facts(run.site(name))}
    return facts | {what: run.config[what] for what in ("asked", "environment")}


def model_card(dictionary: Dictionary, facts: dict | None, repo: str | None) -> str:
    """The model card of a dictionary, as Markdown with the hub's front matter.

    `facts` come from `member_facts`. They are None for a dictionary that no run of ours trained.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="saelens", tags=["sparse-autoencoder", "mechanistic-interpretability"])
    for field, name in (("base_model", dictionary.model_name), ("datasets", dictionary.dataset_path)):
        if name and name != "bundled" and HUB_NAME.fullmatch(name):
            setattr(data, field, name)
    what = f"A sparse autoencoder ({dictionary.cfg['architecture']}) with {dictionary.d_sae:,} features"
    model = f"`{dictionary.model_name or 'an unknown model'}`"
    if dictionary.model_name == "bundled":
        model = "the bundled model, the small GPT-2 that ships with sae-jax"
    where = f"activations of {dictionary.d_in:,} dimensions at `{dictionary.hook_name or 'an unknown hook'}` of {model}"
    if dictionary.hook_name == IMPORTED:
        where = f"rows of {dictionary.d_in:,} dimensions that no language model gave"
    load = f'from_pretrained("{repo}", "{dictionary.name}")' if repo else 'load_from_disk(".")  # this directory'
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {dictionary.name}",
        f"{what}, for {where}.",
        *(
            how_trained(dictionary, facts)
            if facts
            else [f"Converted from a directory of {dictionary.format}{unchanged(dictionary)}."]
        ),
        f"## Load it\n```python\nfrom sae_lens import SAE\n\nsae = SAE.{load}",
    ]
    use = "features = sae.encode(x)  # x: raw activations [rows, dimensions]\nreconstruction = sae.decode(features)"
    return "\n\n".join(parts) + f"\n{use}\n```\n"


def unchanged(dictionary: Dictionary) -> str:
    if dictionary.scale is None:
        return ", with unchanged tensors"
    return f", with the scale of its rows, {dictionary.scale:.6g}, folded into its weights"


def how_trained(dictionary: Dictionary, facts: dict) -> list[str]:
    """The sections on training and metrics."""
    member, store, asked = facts["member"], facts["store"], facts["asked"]
    measured = {name: member["metrics"][name] for name in CARD_METRICS if member["metrics"].get(name) is not None}
    settings = {name: p.get(name) for p, names in ((member, MEMBER), (asked["train"], TRAINING)) for name in names}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings |= {"control": control} if (control := asked["harvest"].get("control")) else {}
    rows = f"{store['rows']:,} rows{'' if dictionary.hook_name == IMPORTED else f': {positions_text(store, asked)}'}"
    if limit := dictionary.cfg["metadata"].get("max_norm"):
        rows += f", without those whose norm is over {limit:g}"
    text = f"`{dictionary.dataset_path}`"
    if dictionary.dataset_path == "bundled":
        text = "the bundled text, the corpus that ships with sae-jax"
    return [
        "## How it was trained",
        f"Trained with sae-jax {facts['environment']['sae-jax']} on {text}: {rows}. "
        "The normalization of activations is folded into the weights, so the SAE takes raw activations.",
        table("setting", {name: f"{value}" for name, value in settings.items()}),
        "## Held-out metrics",
        "Measured with these weights on documents that were never trained on, in units of the raw activations.",
        table("metric", {CARD_METRICS[name]: f"{value:.4g}" for name, value in measured.items()}),
        *filter(None, [remark_on_loss_recovered(member["metrics"])]),
    ]


def positions_text(store: dict, asked: dict) -> str:
    """Say in words which positions of which windows became rows."""
    length = asked["harvest"]["seq_len"]
    if store.get("bos"):
        return f"all positions behind BOS of windows of {length} tokens"
    positions = "all positions" if asked["harvest"]["keep_first_position"] else "all but the first position"
    return f"{positions} of windows of {length} tokens, without BOS"


def table(head: str, rows: dict[str, str]) -> str:
    return "\n".join([f"| {head} | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
