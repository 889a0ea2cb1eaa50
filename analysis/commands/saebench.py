"""Sparse probing, feature absorption and spurious correlation removal of a finished run's dictionaries.

python main.py saebench RUN                                       # all members, on the bundled corpus
python main.py saebench RUN --member ID --metrics probing --k 1 5
python main.py saebench RUN --dataset texts.jsonl --label genre --concepts genre=crime:romance year=1900,1910:1990
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.commands.flags import Parser, filled
from harvest.errors import InputError
from harvest.request import Site, flag
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL

if TYPE_CHECKING:
    import numpy as np

    from harvest.language_model import LanguageModel
    from sae_jax.sae import SAE

METRICS = {"probing": "sparse_probing", "absorption": "absorption", "scr": "spurious_correlation"}
BUNDLED_LABELS = ("topic", "form")
BUNDLED_CONCEPTS = (
    "topic=animals,plants,insects,farming,weather,sea:mathematics,physics,chemistry,computing,law,money",
    "form=diary,story,dialogue:encyclopedia,news,paragraph",
)


@dataclass(frozen=True)
class Options:
    """What is measured, and on which text."""

    member: tuple[str, ...] = flag((), "ids of members (default: all)")
    metrics: tuple[str, ...] = flag(tuple(METRICS), "one or several of them", choices=tuple(METRICS))
    dataset: Path | None = flag(None, "labelled .jsonl(.gz): a text and labels a line (default: the bundled corpus)")
    label: tuple[str, ...] = flag((), "probing: keys of the labels (default: topic form of the bundled corpus)")
    concepts: tuple[str, ...] = flag(
        (), "scr: two concepts KEY=VALUE,..:VALUE,.. of which one side has it and the other not"
    )
    documents: int = flag(5000, "at most, of the data set")
    document_tokens: int = flag(128, "read of each document, in windows as the run was trained on")
    train_share: float = flag(0.8, "share of documents and words that probes are trained on")
    k: tuple[int, ...] = flag((1, 2, 5), "probing: features a probe may see")
    n_ablated: tuple[int, ...] = flag((2, 5, 10, 20, 50), "scr: features taken away")
    words: int = flag(5000, "absorption: at most, of the vocabulary")
    icl_examples: int | None = flag(None, "absorption: examples before a word (default: what fits, at most 10)")
    seed: int = flag(0, "of everything drawn")

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if metric not in METRICS:
                raise InputError(f"--metrics {metric}: must be one of {', '.join(METRICS)}")
        for name in ("k", "n_ablated"):
            if min(values := getattr(self, name)) < 1:
                raise InputError(f"--{name.replace('_', '-')} {min(values)}: must be 1 or more")
        for name in ("documents", "document_tokens", "words"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
        if not 0 < self.train_share < 1:
            raise InputError(f"--train-share {self.train_share}: must be between 0 and 1")
        if self.dataset is None:
            object.__setattr__(self, "label", self.label or BUNDLED_LABELS)
            object.__setattr__(self, "concepts", self.concepts or BUNDLED_CONCEPTS)
        elif not self.dataset.is_file():
            raise InputError(f"--dataset {self.dataset}: there is no such file")
        if "probing" in self.metrics and not self.label:
            raise InputError("--label: under which key are the labels? Or leave probing out of --metrics")
        if "scr" in self.metrics and len(self.concepts) != 2:
            raise InputError("--concepts: scr needs two, KEY=VALUE,..:VALUE,.. each. Or leave scr out of --metrics")


@dataclass(frozen=True)
class FinishedRun:
    path: Path
    sites: dict[str, Site]  # of the members chosen
    model_location: str
    seq_len: int
    first: int  # position in a window that is read
    control: str | None

    @classmethod
    def open(cls, path: Path, chosen: tuple[str, ...]) -> FinishedRun:
        try:
            results, config = (json.loads((path / name).read_text()) for name in ("results.json", "config.json"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} holds no finished run: {error}") from error
        try:
            there = {m["id"]: Site(m["layer"], m["hook"]) for m in results["members"] if not m["failed"]}
            model, asked = config["stores"][0]["model"], config["asked"]["harvest"]
        except KeyError as error:
            raise InputError(f"{path} was written by an earlier version (it lacks {error}): train it again") from error
        if unknown := [name for name in chosen if name not in there]:
            raise InputError(f"--member {unknown[0]}: {path} has {', '.join(there)}")
        bundled = model["asked"] == "bundled" or model["fell_back"]
        return cls(
            path,
            {name: there[name] for name in chosen or there},
            str(BUNDLED_MODEL) if bundled else model["location"],
            asked["seq_len"],
            0 if asked["keep_first_position"] else 1,
            asked.get("control"),
        )

    def dictionaries(self) -> dict[str, SAE]:
        from sae_jax.formats import load_dictionary

        return {name: load_dictionary(self.path / "members" / name).sae for name in self.sites}


def run(argv: list[str]) -> None:
    parser = Parser(prog="main.py saebench", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_flags("what", Options)
    values = vars(parser.parse_args(argv))
    options, finished = filled(Options, values), FinishedRun.open(values["run"], values["member"])

    from harvest.language_model import LanguageModel

    model, saes = LanguageModel.load(finished.model_location, control=finished.control), finished.dictionaries()
    answers: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    if {"probing", "scr"} & set(options.metrics):
        answers |= on_documents(options, finished, model, saes, notes)
    if "absorption" in options.metrics:
        answers["absorption"] = on_words(options, finished, model, saes, notes)
    show(answers, notes, finished)
    write(answers, options, finished)


def on_documents(
    options: Options, finished: FinishedRun, model: LanguageModel, saes: dict[str, SAE], notes: list[str]
) -> dict[str, dict[str, Any]]:
    from analysis import sparse_probing, spurious_correlation
    from analysis.pooling import pool
    from harvest.passages import document_passages, labelled_text

    probed = options.label if "probing" in options.metrics else ()
    paired = options.concepts if "scr" in options.metrics else ()
    fields = tuple(dict.fromkeys((*probed, *(concept.partition("=")[0] for concept in paired))))
    text = labelled_text(
        options.dataset or BUNDLED_CORPUS, fields, options.documents, options.train_share, options.seed
    )
    passages = document_passages(model.tokenizer, text.texts, options.document_tokens, finished.seq_len, finished.first)
    pooled = pool(model, passages, saes, finished.sites)
    answers: dict[str, dict[str, Any]] = {
        METRICS[metric]: {} for metric in ("probing", "scr") if metric in options.metrics
    }
    for label in probed:
        columns = {name: of.f_NxF for name, of in pooled.items()}
        columns |= {f"activations, {site.hook_name}": pooled[name].x_NxD for name, site in finished.sites.items()}
        for name, x_NxC in columns.items():
            result = sparse_probing.compute(x_NxC, text.labels[label], text.is_train_N, options.k, options.seed)
            answers["sparse_probing"].setdefault(name, {})[label] = result
        if result.left_out:
            notes.append(f"{label}: too few documents of {', '.join(result.left_out)}: left out")
    if paired:
        concepts, either_N = concepts_of(paired, text.labels)
        for name, of in pooled.items():
            answers["spurious_correlation"][name] = spurious_correlation.compute(
                of._replace(x_NxD=of.x_NxD[either_N], f_NxF=of.f_NxF[either_N]),
                {concept: has_N[either_N] for concept, has_N in concepts.items()},
                text.is_train_N[either_N],
                options.n_ablated,
                options.seed,
            )
    return answers


def concepts_of(texts: tuple[str, ...], labels: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(of each concept whether a document has it, the documents that are on a side of both)."""
    import numpy as np

    concepts: dict[str, np.ndarray] = {}
    either_N = np.array(True)
    for text in texts:
        key, _, values = text.partition("=")
        sides = [side.split(",") for side in values.split(":")]
        if len(sides) != 2 or not all(all(side) for side in sides):
            raise InputError(f"--concepts {text}: write KEY=VALUE,..:VALUE,.. with the values that have it first")
        if unknown := [value for side in sides for value in side if value not in labels[key]]:
            raise InputError(f"--concepts {text}: no document has {key} {unknown[0]!r}")
        concepts[text] = np.isin(labels[key], sides[0])
        either_N = either_N & np.isin(labels[key], sides[0] + sides[1])
    return concepts, either_N


def on_words(
    options: Options, finished: FinishedRun, model: LanguageModel, saes: dict[str, SAE], notes: list[str]
) -> dict[str, Any]:
    from analysis import absorption
    from analysis.pooling import pool
    from harvest.passages import spelling

    asked = spelling(
        model.tokenizer,
        options.words,
        options.icl_examples,
        finished.seq_len,
        options.train_share,
        options.seed,
    )
    pooled = pool(model, asked.passages, saes, finished.sites)
    answers = {
        name: absorption.compute(of, asked.words, asked.letters_N, asked.is_train_N) for name, of in pooled.items()
    }
    judged = sorted({letter for of in answers.values() for letter in of.letters})
    notes.append(
        f"absorption: {len(asked.words):,} words, examples before each: {asked.n_examples}; letters that the model "
        f"shows (a probe's F1 ≥ {absorption.MIN_PROBE_F1}): {' '.join(judged) or 'none'}. SAEBench advises models "
        "of 2B parameters or more; where F1 (of the split) is far below probe (its F1), there is no letter to absorb"
    )
    return answers


def show(answers: dict[str, dict[str, Any]], notes: list[str], finished: FinishedRun) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from analysis.faces.terminal import LOG_COLUMNS

    rows: dict[str, dict[str, str]] = {}
    for name, by_label in answers.get("sparse_probing", {}).items():
        for k in next(iter(by_label.values())).accuracy:
            mean = sum(of.accuracy[k] for of in by_label.values()) / len(by_label)
            rows.setdefault(name, {})[f"probe\n{k if k == 'all' else f'k={k}'}"] = f"{mean:.3f}"
    for name, of in answers.get("absorption", {}).items():
        cells = {
            "mean": of.fraction,
            "full": of.full,
            "split": of.split_features,
            "F1": of.split_f1,
            "probe": of.probe_f1,
        }
        rows.setdefault(name, {}).update({f"absorb\n{k}": number(value) for k, value in cells.items()})
    for name, of in answers.get("spurious_correlation", {}).items():
        rows.setdefault(name, {}).update({f"SCR\nn={n}": number(value) for n, value in of.score.items()})
    heads = list(dict.fromkeys(head for row in rows.values() for head in row))
    table = Table("", *heads, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for name, row in rows.items():
        table.add_row(name, *(row.get(head, "") for head in heads))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else LOG_COLUMNS)
    console.print(table)
    for note in (*notes, f"in {finished.path / 'analysis'}"):
        console.print(note, markup=False, soft_wrap=True)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def write(answers: dict[str, dict[str, Any]], options: Options, finished: FinishedRun) -> None:
    from harvest.store import write_json

    def plain(value: Any) -> Any:
        return {name: plain(of) for name, of in value.items()} if isinstance(value, dict) else asdict(value)

    directory = finished.path / "analysis"
    directory.mkdir(exist_ok=True)
    settings = asdict(options) | {"dataset": str(options.dataset or "bundled")}
    settings |= {"model": finished.model_location, "seq_len": finished.seq_len, "first_position": finished.first}
    settings |= {"control": finished.control} if finished.control else {}
    for question, of in answers.items():
        write_json(directory / f"{question}.json", {"settings": settings, "members": plain(of)})
