"""What each feature of a prompt does to the model's next token: attributions, checked by ablation.

python main.py attribute RUN --prompt "The ships lay in the" --target " harbour"
python main.py attribute RUN --member ID --prompt "The ships lay in the" --target " harbour" --against " garden"

The output is the target's logit, less that of --against or else the vocabulary's mean. An attribution is what a feature
adds to it: a sum over positions of f · (W_dec · gradient), the gradient at the prompt itself (gradient), its mean while
all features fade in (integrated), or while this one does (path). Ablation takes the feature away at all positions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analysis.cli.flags import Parser, filled
from analysis.runs.finished import FinishedRun
from analysis.ui.terminal.live import Terminal
from harvest.errors import InputError
from harvest.files import write_json
from harvest.request import flag

METHODS = ("gradient", "integrated", "path")  # here, so that --help need not import jax


@dataclass(frozen=True)
class Options:
    """Of what, and how."""

    member: str | None = flag(None, "id of a member (default: the only one)")
    prompt: str | None = flag(None, "the text before the token in question")
    target: str | None = flag(None, "that token, with the space before it if it has one")
    against: str | None = flag(None, "another one: attribute the difference of their logits")
    method: str = flag("path", "where the gradient is taken", choices=METHODS)
    steps: int = flag(16, "of the path of all features together")
    top: int = flag(20, "features to show and to ablate, those of the largest attributions")
    json: Path | None = flag(None, "a file for all figures", written=True)

    def __post_init__(self) -> None:
        for name in ("prompt", "target"):
            if not getattr(self, name):
                raise InputError(f"--{name}: needed, as in --prompt 'The ships lay in the' --target ' harbour'")
        if self.method not in METHODS:
            raise InputError(f"--method {self.method}: must be one of {', '.join(METHODS)}")
        for name in ("steps", "top"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"--{name} {value}: must be 1 or more")


def run(argv: list[str]) -> None:
    parser = Parser(prog="main.py attribute", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_flags("what", Options)
    values = vars(parser.parse_args(argv))
    options, finished = filled(Options, values), FinishedRun.open(values["run"])
    member = finished.only(options.member)
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from analysis.interventions.attribution import compute_attribution

    model = finished.language_model
    model.need_next_token("Attribution to a next token")
    tokenizer, longest = model.tokenizer, model.bridge.cfg.n_ctx
    first_position = finished.first_position
    prompt_T = tokenizer(options.prompt, add_special_tokens=False)["input_ids"]
    if not first_position < len(prompt_T) <= longest:
        raise InputError(f"--prompt: {len(prompt_T)} tokens; from {first_position + 1} to {longest} can be read")
    target, against = (token_of(tokenizer, name, getattr(options, name)) for name in ("target", "against"))
    assert target is not None
    found = compute_attribution(
        model,
        prompt_T,
        finished.site(member),
        finished.dictionary(member).sae,
        target,
        against,
        options.method,
        options.top,
        options.steps,
        first_position,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("feature", "attribution", "ablation", "value", "position"):
        table.add_column(head, justify="right")
    table.add_column("token", overflow="fold")
    tokens = [tokenizer.decode([token]) for token in prompt_T]
    for effect in found.effects:
        figures = (f"{effect.attribution:+.4f}", f"{effect.ablation:+.4f}", f"{effect.value:.2f}")
        table.add_row(str(effect.feature), *figures, str(effect.position), Text(repr(tokens[effect.position])))
    less = repr(options.against) if options.against else "the mean logit"
    with Terminal() as terminal:
        terminal.say(f"{options.target!r} less {less}: {found.output:.3f}; its probability: {found.probability:.4f}")
        terminal.show(table)
        agree = "cannot be told" if found.correlation is None else f"{found.correlation:.3f}"
        terminal.say(f"correlation of attribution ({found.method}) and ablation over these: {agree}")
        terminal.say(
            f"all {found.active} active features together: {found.features_give:+.3f}; "
            f"the dictionary's error: {found.error_gives:+.3f}"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        facts = {"schema": 1, "run": str(finished.path), "member": member, "prompt": tokens}
        facts |= {"hook_name": finished.site(member).hook_name, "target": options.target, "against": options.against}
        write_json(options.json, facts | asdict(found))


def token_of(tokenizer: Any, name: str, text: str | None) -> int | None:
    """The one token that a text is. Raises InputError where it is several."""
    if text is None:
        return None
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = " ".join(repr(tokenizer.decode([token])) for token in ids)
        raise InputError(f"--{name} {text!r}: must be one token; to this model it is {pieces or 'none'}")
    return ids[0]
