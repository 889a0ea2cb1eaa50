"""The members of a population and their ids, built from the flags. Imports neither torch nor jax."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from itertools import product
from typing import Any

from harvest.errors import InputError, shortened
from harvest.request import Site
from sae_jax.config import AXES, FLAGS_OF_SOME_KINDS, SPARSITY_CONTROLS, TrainConfig, flags_of_kind


@dataclass(frozen=True)
class Member:
    """The settings of one SAE. Exactly one of k, target_l0 and sparsity is set; its name is `sparsity_control`.

    Members with the same settings are equal, even if their ids differ.
    """

    id: str = field(compare=False)
    activation: str
    layer: int
    hook: str
    hidden_dim: int
    lr: float
    k: int | None
    target_l0: float | None
    sparsity: float | None
    seed: int
    warmup: float
    normalization: str
    loss_metric: str
    aux_coefficient: float | None
    dead_rule: str
    decoder_lr_ratio: float
    baseline: str  # "trained" for an ordinary member

    @classmethod
    def from_results(cls, record: Mapping[str, Any]) -> Member:
        """The member that a record of results.json describes, without its metrics."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})

    @property
    def kind(self) -> str:
        return kind_name(self.activation, self.baseline)

    @property
    def sparsity_control(self) -> str:
        return next(name for name in ("k", "sparsity", "target_l0") if getattr(self, name) is not None)

    @property
    def l0_asked(self) -> float | None:
        """The requested L0; None if the penalty coefficient is fixed."""
        return self.k or self.target_l0


def kind_name(activation: str, baseline: str) -> str:
    """The kind, with the name of the baseline if it is one: "topk" or "topk, frozen_decoder"."""
    return activation if baseline == "trained" else f"{activation}, {baseline}"


def members_of(config: TrainConfig, sites: tuple[Site, ...]) -> list[Member]:
    """All combinations of the values in a stable order. Entries of the members' file fix some of the values.

    Settings that have no effect on a kind do not multiply its members. Raises InputError for an invalid combination.
    """
    members = [member for entry in config.entries or [{}] for member in combinations(config, sites, entry)]
    same, ids = Counter(members), Counter(member.id for member in members)
    if twice := next((m.id for m in members if same[m] > 1 or ids[m.id] > 1), None):
        raise InputError(f"two members would be the same ({twice}): remove one, or change one of its values")
    return members


def combinations(config: TrainConfig, sites: tuple[Site, ...], entry: dict[str, Any]) -> list[Member]:
    """All combinations of the values, with those of an entry of the members' file fixed."""
    values_of = {name: (entry[name],) if name in entry else getattr(config, name) for name in AXES}
    if "baseline" not in entry:
        values_of["baseline"] = tuple(dict.fromkeys(("trained", *config.baseline)))
    chosen = [s for s in sites if entry.get("layer", s[0]) == s[0] and entry.get("hook", s[1]) == s[1]]
    if not chosen:
        raise InputError(
            f"--members {config.members}: {shortened(entry)} needs a layer or hook that is not harvested: "
            "add it to --layer or --hook"
        )
    members = []
    for activation in values_of["activation"]:
        controls = SPARSITY_CONTROLS[activation]
        is_fixed = "sparsity" in controls and values_of["sparsity"] and "target_l0" not in entry
        other_controls = {*controls} - {"sparsity" if is_fixed else controls[0]}
        unused = {"activation", *FLAGS_OF_SOME_KINDS} - (flags_of_kind(activation) - other_controls)
        axes = {name: values for name, values in values_of.items() if name not in unused}
        for (layer, hook), *values in product(chosen, *axes.values()):
            settings: dict[str, Any] = dict.fromkeys(unused) | dict(zip(axes, values, strict=True))
            settings |= {"activation": activation, "layer": layer, "hook": hook}
            member = Member(id="", **settings)
            refuse_impossible(member, f"--members {config.members}: " if entry else "")
            members.append(replace(member, id=member_id(member, several_sites=len(sites) > 1)))
    return members


def refuse_impossible(m: Member, where: str) -> None:
    if m.k is not None and m.k > m.hidden_dim:
        raise InputError(f"{where}--k {m.k}: must be 1 to --hidden-dim ({m.hidden_dim})")
    if m.target_l0 is not None and m.target_l0 >= m.hidden_dim:
        raise InputError(f"{where}--target-l0 {m.target_l0:g}: must be over 0 and under --hidden-dim ({m.hidden_dim})")


def member_id(m: Member, several_sites: bool) -> str:
    """A short, readable id: topk-f2304-k32-lr3e-4-s0. Other settings are included if they are not the default."""
    site = f"l{m.layer}" + (f"-{m.hook}" if m.hook != "resid_pre" else "") if several_sites else ""
    control = LETTERS[m.sparsity_control] + exact(getattr(m, m.sparsity_control))
    parts = [m.activation, site, f"f{m.hidden_dim}", control, f"lr{short(m.lr)}", f"s{m.seed}"]
    for name, text in UNUSUAL.items():
        if (value := getattr(m, name)) not in (None, getattr(TrainConfig, name)[0]):
            parts.append(text.format(value))
    return "-".join(part for part in parts if part)


LETTERS = {"k": "k", "sparsity": "s", "target_l0": "l"}
UNUSUAL = {
    "warmup": "w{}",
    "normalization": "norm_{}",
    "loss_metric": "loss_{}",
    "dead_rule": "dead_{}",
    "aux_coefficient": "aux{}",
    "decoder_lr_ratio": "dec{}",
    "baseline": "{}",
}


def short(x: float) -> str:
    """A number in short scientific notation with all digits: 3e-4 rather than 0.0003."""
    mantissa, exponent = f"{Decimal(repr(float(x))):e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def exact(x: float) -> str:
    """A number with all digits: 32 rather than 32.0."""
    return str(int(x)) if x == int(x) else repr(x)
