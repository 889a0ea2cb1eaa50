"""Three SAEBench metrics of a run's dictionaries: sparse probing, feature absorption, spurious correlation removal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from harvest.files import read_json, write_json
from harvest.flags import COUNT, NUMBER, Flags, flag
from harvest.sources import BUNDLED_CORPUS

if TYPE_CHECKING:
    import numpy as np

    from analysis.quality.probe import Probe
    from harvest.request import Site
    from sae_jax.models.base import SAE

BENCHMARKS = {"probing": "sparse_probing", "absorption": "absorption", "scr": "spurious_correlation"}
TRAIN_SHARE = 0.8  # of the documents and words
BUNDLED_LABELS = ("topic", "form")
BUNDLED_CONCEPTS = (
    "topic=animals,plants,insects,farming,weather,sea:mathematics,physics,chemistry,computing,law,money",
    "form=diary,story,dialogue:encyclopedia,news,paragraph",
)


@dataclass(frozen=True)
class SAEBench(Flags):
    """The flags of `saebench`: the benchmarks, and the text that they run on."""

    metrics: tuple[str, ...] = flag(
        tuple(BENCHMARKS),
        "benchmarks to run: sparse probing, absorption, spurious correlation removal (scr)",
        choices=tuple(BENCHMARKS),
    )
    dataset: Path | None = flag(
        None, ".jsonl or .jsonl.gz with a text and its labels on each line (default: the bundled corpus)"
    )
    label: tuple[str, ...] = flag((), "probing: keys of the labels (default for the bundled corpus: topic form)")
    concepts: tuple[str, ...] = flag(
        (), "scr: two concepts, each KEY=A,..:B,..: documents whose KEY is A have it, those whose KEY is B do not"
    )
    documents: int = flag(5000, "largest number of documents to use", COUNT)
    document_tokens: int = flag(128, "number of tokens to read of each document, in windows of the run's length", COUNT)
    k: tuple[int, ...] = flag((1, 2, 5), "probing: numbers of features that a probe may use", COUNT)
    n_ablated: tuple[int, ...] = flag(
        (2, 5, 10, 20, 50), "scr: numbers of features to ablate, one score for each", COUNT
    )
    words: int = flag(5000, "absorption: largest number of words of the vocabulary to use", COUNT)
    seed: int = flag(0, "seed of all random choices", NUMBER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset is None:
            object.__setattr__(self, "label", self.label or BUNDLED_LABELS)
            object.__setattr__(self, "concepts", self.concepts or BUNDLED_CONCEPTS)
        elif not self.dataset.is_file():
            raise InputError(f"--dataset {self.dataset}: there is no such file: give a .jsonl file")
        if "probing" in self.metrics and not self.label:
            raise InputError("--label is missing: give the key of the labels, or leave probing out of --metrics")
        if "scr" in self.metrics and len(self.concepts) != 2:
            raise InputError(
                "--concepts: scr needs two concepts: give two of the form KEY=A,..:B,.. or leave scr out of --metrics"
            )
        for concept in self.concepts:
            sides_of(concept)


def run_benchmarks(
    settings: SAEBench,
    run: FinishedRun,
    members: Sequence[str],
    notes: list[str],
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each benchmark's name and its results by member. Remarks for the user are appended to `notes`."""
    saes = {name: run.dictionary(name).sae for name in members}
    if {"probing", "scr"} & set(settings.metrics):
        yield from on_documents(settings, run, saes, notes, on_progress)
    if "absorption" in settings.metrics:
        yield "absorption", on_words(settings, run, saes, notes, on_progress)


def on_documents(
    settings: SAEBench,
    run: FinishedRun,
    saes: dict[str, SAE],
    notes: list[str],
    on_progress: Callable[[str, int, int], None],
) -> Iterator[tuple[str, dict[str, Any]]]:
    import numpy as np

    from analysis.quality import sparse_probing, spurious_correlation
    from analysis.quality.pooling import pool
    from harvest.text.passages import document_passages, labelled_text

    probed = settings.label if "probing" in settings.metrics else ()
    paired = settings.concepts if "scr" in settings.metrics else ()
    fields = tuple(dict.fromkeys((*probed, *(concept.partition("=")[0] for concept in paired))))
    text = labelled_text(settings.dataset or BUNDLED_CORPUS, fields, settings.documents, TRAIN_SHARE, settings.seed)
    refuse_too_many(settings, saes)
    try:
        for label in probed:
            sparse_probing.large_classes(text.labels[label], text.is_train_N)
        if paired:
            concepts, either_N = concepts_of(paired, text.labels)
            concepts = {concept: has_N[either_N] for concept, has_N in concepts.items()}
            spurious_correlation.sides(concepts, text.is_train_N[either_N], np.random.default_rng(settings.seed))
    except InputError as error:
        if len(text.texts) < settings.documents:  # all documents of the file are used
            raise
        raise InputError(f"--documents {settings.documents}: may be too few: {error}") from error
    model = run.language_model  # loaded only now, after all checks that do not need it
    passages = document_passages(model.tokenizer, text.texts, settings.document_tokens, run.seq_len, run.first_position)
    sites = {name: run.site(name) for name in saes}
    pooled = pool(model, passages, saes, sites, on_progress)
    probing: dict[str, dict[str, Any]] = {}
    columns = {name: member.f_NxF for name, member in pooled.items()}
    columns |= {f"activations, {site.hook_name}": pooled[name].x_NxD for name, site in sites.items()}
    for done, (label, (name, x_NxC)) in enumerate(product(probed, columns.items())):
        on_progress("probing", done, len(probed) * len(columns))
        result = sparse_probing.compute_sparse_probing(
            x_NxC, text.labels[label], text.is_train_N, settings.k, settings.seed
        )
        probing.setdefault(name, {})[label] = result
        on_progress("probing", done + 1, len(probed) * len(columns))
    for label in probed:
        result = next(iter(probing.values()))[label]
        train, held_out = (min(sizes[side] for sizes in result.documents.values()) for side in ("train", "held_out"))
        notes.append(f"{label}: each class has at least {train:,} documents to train on and {held_out:,} held out")
        if result.left_out:
            notes.append(f"{label}: left out, because they have too few documents: {', '.join(result.left_out)}")
    if probed:
        yield BENCHMARKS["probing"], probing
    if paired:
        rows = {name: p._replace(x_NxD=p.x_NxD[either_N], f_NxF=p.f_NxF[either_N]) for name, p in pooled.items()}
        is_train_N, removals = text.is_train_N[either_N], {}
        for done, (name, documents) in enumerate(rows.items()):
            on_progress("spurious correlation", done, len(rows))
            removals[name] = spurious_correlation.compute_spurious_correlation(
                documents, concepts, is_train_N, settings.n_ablated, settings.seed
            )
            on_progress("spurious correlation", done + 1, len(rows))
        yield BENCHMARKS["scr"], removals


def refuse_too_many(settings: SAEBench, saes: dict[str, SAE]) -> None:
    features = min(len(sae.W_dec) for sae in saes.values())
    columns = min(features, *(sae.W_dec.shape[1] for sae in saes.values()))
    if "probing" in settings.metrics and (k := max(settings.k)) > columns:
        raise InputError(
            f"--k {k}: must be at most {columns}, the smaller of the numbers of features and of neurons (dimensions)"
        )
    if "scr" in settings.metrics and (n := max(settings.n_ablated)) > features:
        raise InputError(f"--n-ablated {n}: must be at most {features}, the number of features")


def concepts_of(texts: tuple[str, ...], labels: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(whether each document has each concept, which documents have a listed value for both concepts), bool [N]."""
    import numpy as np

    concepts: dict[str, np.ndarray] = {}
    either_N = np.array(True)
    for text in texts:
        key, present, absent = sides_of(text)
        if unknown := [value for value in present + absent if value not in labels[key]]:
            raise InputError(
                f"no document has {key} {unknown[0]!r}: give --concepts with values of {key} in the data set"
            )
        concepts[text] = np.isin(labels[key], present)
        either_N = either_N & np.isin(labels[key], present + absent)
    return concepts, either_N


def sides_of(concept: str) -> tuple[str, list[str], list[str]]:
    """(key, its values in documents with the concept, its values in those without), from KEY=A,..:B,.."""
    key, _, values = concept.partition("=")
    sides = [side.split(",") for side in values.split(":")]
    if len(sides) != 2 or not all(all(side) for side in sides):
        raise InputError(
            f"--concepts {concept}: must be KEY=A,..:B,.. (documents whose KEY is A have the concept, those "
            "whose KEY is B do not)"
        )
    return key, sides[0], sides[1]


def on_words(
    settings: SAEBench,
    run: FinishedRun,
    saes: dict[str, SAE],
    notes: list[str],
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> dict[str, Any]:
    from analysis.quality import absorption
    from analysis.quality.pooling import pool
    from harvest.text.passages import spelling

    model = run.language_model
    prompts = spelling(model.tokenizer, settings.words, run.seq_len, TRAIN_SHARE, settings.seed)
    pooled = pool(model, prompts.passages, saes, {name: run.site(name) for name in saes}, on_progress)
    answers, of_words = {}, (prompts.letters_N, prompts.is_train_N)
    probes: dict[Site, dict[str, Probe]] = {}
    for done, (name, words) in enumerate(pooled.items()):
        on_progress("absorption", done, len(pooled))
        if (site := run.site(name)) not in probes:
            probes[site] = absorption.letter_probes(words.x_NxD, *of_words)
        answers[name] = absorption.compute_absorption(words, prompts.words, *of_words, probes[site])
        on_progress("absorption", done + 1, len(pooled))
    for name, words in pooled.items():
        if not (words.f_NxF[prompts.is_train_N] != 0).any():
            notes.append(f"{name}: absorption is not measured, because no feature fires on a word to train on")
    letters = sorted({letter for answer in answers.values() for letter in answer.letters})
    examples = "one spelled word" if prompts.n_examples == 1 else f"{prompts.n_examples} spelled words"
    notes.append(
        f"absorption: {len(prompts.words):,} words, each behind {examples}; letters that the model represents (F1 of a "
        f"probe at least {absorption.MIN_PROBE_F1}): {' '.join(letters) or 'none'}. SAEBench "
        "recommends models of 2B parameters or more. If F1 (of the letter's features) is far below probe (F1 of a "
        "probe on the activations), the dictionary has no features for letters, and absorption means little"
    )
    return answers


def write_benchmark(question: str, answer: dict[str, Any], settings: SAEBench, run: FinishedRun) -> list[str]:
    """Write the run's analysis/<question>.json, beside what it has of other members that was measured alike.

    Returns the other members whose results are lost, because they were measured with other settings.
    """
    path, record, members = run.path / "analysis" / f"{question}.json", settings_record(settings, run), as_dicts(answer)
    before = read_json(path, "delete it, and run `saebench` again") if path.exists() else {"settings": record}
    others = {name: result for name, result in before.get("members", {}).items() if name not in members}
    alike = before["settings"] == json.loads(json.dumps(record))
    write_json(path, {"settings": record, "members": (others if alike else {}) | members})
    return [] if alike else [name for name in others if name in run.members]


def settings_record(settings: SAEBench, run: FinishedRun) -> dict[str, Any]:
    """What the results depend on, apart from the member."""
    record = asdict(settings) | {"dataset": str(settings.dataset or "bundled"), "train_share": TRAIN_SHARE}
    del record["metrics"]
    record |= {"model": run.model_location}
    return record | {"seq_len": run.seq_len, "first_position": run.first_position}


def as_dicts(answers: Any) -> Any:
    """Results as nested dictionaries that JSON can store."""
    return {name: as_dicts(part) for name, part in answers.items()} if isinstance(answers, dict) else asdict(answers)
