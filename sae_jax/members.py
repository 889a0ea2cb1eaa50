"""From the values of the flags to the members of a population. Imports neither torch nor jax."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import product
from typing import Any

from harvest.errors import InputError, shortened
from harvest.request import Site
from sae_jax.config import AXES, SPARSITY_CONTROLS, TrainConfig


@dataclass(frozen=True)
class Member:
    """The settings of one sparse autoencoder. Of k, target_l0 and sparsity one is set: its `sparsity_control`.

    Members with the same settings are equal, whatever their ids.
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
    aux_coefficient: float | None
    dead_rule: str

    @property
    def sparsity_control(self) -> str:
        return next(name for name in ("k", "sparsity", "target_l0") if getattr(self, name) is not None)

    @property
    def l0_asked(self) -> float | None:
        """None where a coefficient is fixed."""
        return self.k or self.target_l0


def members_of(config: TrainConfig, sites: tuple[Site, ...]) -> list[Member]:
    """Every combination of the values, or of what an entry of the members' file leaves open, in a stable order.

    What means nothing to a kind does not multiply it. Raises InputError for a combination that cannot be.
    """
    members = [member for entry in config.entries or [{}] for member in combinations(config, sites, entry)]
    same, ids = Counter(members), Counter(member.id for member in members)
    if twice := next((m.id for m in members if same[m] > 1 or ids[m.id] > 1), None):
        raise InputError(f"two members would be {twice}: give each its own values")
    return members


def combinations(config: TrainConfig, sites: tuple[Site, ...], entry: dict[str, Any]) -> list[Member]:
    own = {name: (entry[name],) if name in entry else getattr(config, name) for name in AXES}
    chosen = [s for s in sites if entry.get("layer", s[0]) == s[0] and entry.get("hook", s[1]) == s[1]]
    if not chosen:
        raise InputError(
            f"--members {config.members}: {shortened(entry)} asks for a layer or hook that is not harvested"
        )
    members = []
    for activation in own["activation"]:
        control = SPARSITY_CONTROLS[activation][0]
        if "sparsity" in SPARSITY_CONTROLS[activation] and own["sparsity"] and "target_l0" not in entry:
            control = "sparsity"
        meaningless = {"activation", "k", "target_l0", "sparsity"} - {control}
        if control != "k":
            meaningless.add("aux_coefficient")
        axes = {name: values for name, values in own.items() if name not in meaningless}
        for (layer, hook), *values in product(chosen, *axes.values()):
            settings: dict[str, Any] = dict.fromkeys(meaningless) | dict(zip(axes, values, strict=True))
            settings |= {"activation": activation, "layer": layer, "hook": hook}
            members.append(Member(id=member_id(settings, several_sites=len(sites) > 1), **settings))
            refuse_impossible(members[-1], f"--members {config.members}: " if entry else "")
    return members


def refuse_impossible(m: Member, where: str) -> None:
    if m.k is not None and m.k > m.hidden_dim:
        raise InputError(f"{where}--k {m.k}: must be 1 to --hidden-dim ({m.hidden_dim})")
    if m.target_l0 is not None and m.target_l0 >= m.hidden_dim:
        raise InputError(f"{where}--target-l0 {m.target_l0:g}: must be over 0, under --hidden-dim ({m.hidden_dim})")


def member_id(settings: dict[str, Any], several_sites: bool) -> str:
    """Short and readable: topk-f2304-k32-lr3e-4-s0. Further settings show where they are not the default."""
    layer, hook = settings["layer"], settings["hook"]
    site = f"l{layer}" + (f"-{hook}" if hook != "resid_pre" else "") if several_sites else ""
    letters = (("k", "k"), ("s", "sparsity"), ("l", "target_l0"))
    control = next(f"{letter}{exact(settings[name])}" for letter, name in letters if settings[name] is not None)
    parts = [settings["activation"], site, f"f{settings['hidden_dim']}", control, f"lr{short(settings['lr'])}"]
    parts.append(f"s{settings['seed']}")
    defaults = {name: getattr(TrainConfig, name)[0] for name in UNUSUAL}
    parts += [p.format(settings[n]) for n, p in UNUSUAL.items() if settings[n] not in (None, defaults[n])]
    return "-".join(part for part in parts if part)


UNUSUAL = {"warmup": "w{}", "normalization": "norm_{}", "dead_rule": "dead_{}", "aux_coefficient": "aux{}"}


def short(x: float) -> str:
    """3e-4 rather than 0.0003, all its digits."""
    mantissa, exponent = f"{Decimal(repr(float(x))):e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def exact(x: float) -> str:
    """32 rather than 32.0."""
    return str(int(x)) if x == int(x) else repr(x)
