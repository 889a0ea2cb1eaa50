"""Write the weights of one dictionary for SAELens, with a model card, or its feature pages for Neuronpedia.

python main.py export RUN --member ID --to DIR                   # a member of a finished run
python main.py export DICTIONARY --to DIR                        # a dictionary of SAELens or dictionary_learning
python main.py export RUN --member ID --to DIR --push-to-hub me/my-saes
python main.py export RUN --member ID --to DIR --neuronpedia     # feature pages instead of weights
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.cli.flags import Parser, filled
from analysis.runs.finished import FinishedRun
from analysis.ui.terminal.live import Terminal
from harvest.errors import InputError
from harvest.files import parse_json, refuse_taken
from harvest.request import default_cache_dir, flag


@dataclass(frozen=True)
class Options:
    member: str | None = flag(None, "id of the member; needed if the run has several")
    to: Path | None = flag(None, "a new or empty directory to write to")
    neuronpedia: bool = flag(False, "write files with feature pages, for import by Neuronpedia, instead of the weights")
    cache_dir: Path = flag(default_cache_dir(), "with --neuronpedia: where harvested activations are kept")
    push_to_hub: str | None = flag(
        None, "also upload to this repository of the Hugging Face hub, into a folder named after the dictionary"
    )


def run(argv: list[str]) -> None:
    parser = Parser(prog="main.py export", description=__doc__)
    parser.add_argument("source", type=Path, metavar="RUN", help="a run directory, or the directory of a dictionary")
    parser.add_flags("export", Options)
    values = vars(parser.parse_args(argv))
    source, options = values["source"], filled(Options, values)
    if options.to is None:
        raise InputError("--to is missing: give a new or empty directory to write to")
    refuse_taken(options.to)
    if options.neuronpedia:
        if options.push_to_hub:
            raise InputError("--push-to-hub uploads weights, not the pages of --neuronpedia: leave one of them out")
        write_neuronpedia(source, options)
        return
    if repo := options.push_to_hub:
        refuse_no_hub(repo)

    from analysis.export.model_card import model_card
    from harvest.files import write_atomically
    from sae_jax.formats import load_dictionary, save_dictionary

    facts = member_facts(source, options.member)
    dictionary = FinishedRun.open(source).dictionary(facts["member"]["id"]) if facts else load_dictionary(source)
    card = model_card(dictionary, facts, repo)
    save_dictionary(dictionary, options.to)
    write_atomically(options.to / "README.md", lambda f: f.write(card.encode()))
    with Terminal() as terminal:
        for sentence in dictionary.told():
            terminal.say(sentence)
        what = f"{dictionary.cfg['architecture']}, {dictionary.d_in} × {dictionary.d_sae}"
        terminal.say(f"{dictionary.name} ({what}): {options.to}")
        if repo:
            terminal.say(push(options.to, repo, dictionary.name))


def write_neuronpedia(source: Path, options: Options) -> None:
    from analysis.export.neuronpedia import export

    run = FinishedRun.open(source)
    member = run.only(options.member)
    assert options.to is not None
    with Terminal() as terminal:
        export(run, member, options.to, options.cache_dir, terminal.progress, terminal.say)
        terminal.say(f"{member}: pages in {options.to}/batch-*.json")


def member_facts(source: Path, member_id: str | None) -> dict | None:
    """The run's records of a member ("member", "asked", "store", "environment"); None if `source` is no run."""
    if not (source / "config.json").exists() or "asked" not in parse_json(source / "config.json", "choose another"):
        if member_id is not None:
            raise InputError(f"--member {member_id}: {source} is a single dictionary, not a run: leave --member out")
        return None
    run = FinishedRun.open(source)
    if member_id is None and len(run.results["members"]) > 1:
        raise InputError(f"--member is missing and the run has several: give one of {', '.join(run.members)}")
    (name,) = run.chosen((member_id,) if member_id else ())
    facts = {"member": run.members[name], "store": run.store_facts(run.site(name))}
    return facts | {what: run.config[what] for what in ("asked", "environment")}


def refuse_no_hub(repo: str) -> None:
    """Raise InputError if an upload is impossible. Called before anything is written."""
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import validate_repo_id

    asked, endpoint = f"--push-to-hub {repo}", constants.ENDPOINT
    login = "set HF_TOKEN to a token with write access, or run `hf auth login`"
    try:
        validate_repo_id(repo)
    except ValueError as e:
        raise InputError(f"{asked}: not a valid name ({e}): give USER/NAME") from e
    if get_token() is None:
        raise InputError(f"{asked}: you are not logged in to the hub at {endpoint}: {login}, or leave the flag out")
    try:
        HfApi().whoami()
    except HfHubHTTPError as e:
        reason = str(e).splitlines()[0]
        raise InputError(f"{asked}: the hub at {endpoint} rejects the login ({reason}): {login}") from e
    except Exception as e:  # the client raises many types if the hub cannot be reached
        raise InputError(f"{asked}: the hub at {endpoint} cannot be reached ({e}): leave the flag out") from e


def push(directory: Path, repo: str, name: str) -> str:
    """Upload `directory` into the folder `name`, which SAELens calls the sae_id. Returns the repository's URL.

    If the repository has no README.md of its own, the model card becomes it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=directory, path_in_repo=name, commit_message=f"Upload SAE {name}")
        if not api.file_exists(repo, "README.md"):
            api.upload_file(repo_id=repo, path_or_fileobj=directory / "README.md", path_in_repo="README.md")
    except Exception as e:  # the client raises many types if the hub refuses or cannot be reached
        again = f"try again with `hf upload {repo} {directory} {name}`"
        reason = str(e).splitlines()[0]
        raise InputError(f"--push-to-hub {repo}: written to {directory}, but not uploaded ({reason}): {again}") from e
    return str(url)
