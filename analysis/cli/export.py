"""Write a dictionary for SAELens, or pages for Neuronpedia.

python main.py export RUN --member ID --to DIR                   # a member of a finished run
python main.py export DICTIONARY --to DIR                        # a dictionary of SAELens or dictionary_learning
python main.py export RUN --member ID --to DIR --push-to-hub me/my-saes
python main.py export RUN --member ID --to DIR --neuronpedia     # feature pages instead of weights
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from analysis.cli.flags import MEMBER, filled, parsed, place
from analysis.cli.output import Quiet
from analysis.export.hub import push_to_hub, refuse_no_hub
from analysis.runs.finished import FinishedRun
from analysis.ui.terminal.wording import pasted
from harvest.errors import InputError
from harvest.files import refuse_taken, write_atomically
from harvest.flags import DEVICE, WHERE, Flags, flag
from harvest.request import default_cache_dir


@dataclass(frozen=True)
class Options(Flags):
    source: Path = place("RUN", "a run directory, or the directory of a dictionary")
    member: str | None = flag(None, MEMBER)
    to: Path | None = flag(None, "a new or empty directory to write to")
    neuronpedia: bool = flag(False, "write files with feature pages, for import by Neuronpedia, instead of the weights")
    cache_dir: Path = flag(default_cache_dir(), "with --neuronpedia: where harvested activations are kept")
    device: str = flag("auto", f"with --neuronpedia: {WHERE}", DEVICE)
    push_to_hub: str | None = flag(
        None, "also upload to this repository of the Hugging Face hub, into a folder named after the dictionary"
    )


def run(argv: list[str]) -> None:
    values = parsed("export", __doc__, argv, Options, Quiet)
    options, output = filled(Options, values), filled(Quiet, values)
    source = options.source
    if options.to is None:
        raise InputError("--to is missing: give a new or empty directory to write to")
    refuse_taken(options.to)
    if options.neuronpedia:
        if options.push_to_hub:
            raise InputError("--push-to-hub uploads weights, not the pages of --neuronpedia: leave one of them out")
        write_neuronpedia(source, options, output)
        return
    if repo := options.push_to_hub:
        refuse_no_hub(repo)
    with output.terminal() as terminal:
        terminal.begin(f"reading {source}")
        from analysis.export.model_card import member_facts, model_card
        from sae_jax.formats import load_dictionary, save_dictionary

        facts = member_facts(source, options.member)
        dictionary = FinishedRun.open(source).dictionary(facts["member"]["id"]) if facts else load_dictionary(source)
        card = model_card(dictionary, facts, repo)
        save_dictionary(dictionary, options.to)
        write_atomically(options.to / "README.md", lambda f: f.write(card.encode()))
        for sentence in dictionary.told():
            terminal.say(sentence)
        what = f"{dictionary.cfg['architecture']}, {dictionary.d_in} × {dictionary.d_sae}"
        terminal.say(f"{dictionary.name} ({what}): {options.to}")
        terminal.say(pasted(f"next: python main.py evaluate {quote(str(options.to))}"))
        if repo:
            terminal.say(push_to_hub(options.to, repo, dictionary.name))


def write_neuronpedia(source: Path, options: Options, output: Quiet) -> None:
    run = FinishedRun.open(source, options.device)
    member = run.only(options.member)
    assert options.to is not None
    with output.terminal() as terminal:
        terminal.begin("loading the libraries")
        from analysis.export.neuronpedia import export

        export(run, member, options.to, options.cache_dir, terminal.progress, terminal.say)
        terminal.say(f"{member}: pages in {options.to}/batch-*.json")
