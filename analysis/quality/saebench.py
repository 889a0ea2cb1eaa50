"""SAEBench's core metrics of a run's dictionaries: sparse probing, feature absorption, spurious correlation removal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from harvest.request import flag
from harvest.sources import BUNDLED_CORPUS

if TYPE_CHECKING:
    import numpy as np

    from sae_jax.models.base import SAE

METRICS = {"probing": "sparse_probing", "absorption": "absorption", "scr": "spurious_correlation"}
BUNDLED_LABELS = ("topic", "form")
BUNDLED_CONCEPTS = (
    "topic=animals,plants,insects,farming,weather,sea:mathematics,physics,chemistry,computing,law,money",
    "form=diary,story,dialogue:encyclopedia,news,paragraph",
)


@dataclass(frozen=True)
class SAEBench:
    """What is measured, and on which text."""

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


def run_benchmarks(
    settings: SAEBench, run: FinishedRun, members: Sequence[str], notes: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each question and its answer, as they come; `notes` for the reader are added to."""
    saes = {name: run.dictionary(name).sae for name in members}
    if {"probing", "scr"} & set(settings.metrics):
        yield from on_documents(settings, run, saes, notes)
    if "absorption" in settings.metrics:
        yield "absorption", on_words(settings, run, saes, notes)


def on_documents(
    settings: SAEBench, run: FinishedRun, saes: dict[str, SAE], notes: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    import numpy as np

    from analysis.quality import sparse_probing, spurious_correlation
    from analysis.quality.pooling import pool
    from harvest.text.passages import document_passages, labelled_text

    probed = settings.label if "probing" in settings.metrics else ()
    paired = settings.concepts if "scr" in settings.metrics else ()
    fields = tuple(dict.fromkeys((*probed, *(concept.partition("=")[0] for concept in paired))))
    text = labelled_text(
        settings.dataset or BUNDLED_CORPUS, fields, settings.documents, settings.train_share, settings.seed
    )
    refuse_too_many(settings, saes)
    for label in probed:
        sparse_probing.large_classes(text.labels[label], text.is_train_N)
    if paired:
        concepts, either_N = concepts_of(paired, text.labels)
        concepts = {concept: has_N[either_N] for concept, has_N in concepts.items()}
        spurious_correlation.sides(concepts, text.is_train_N[either_N], np.random.default_rng(settings.seed))
    model = run.language_model  # only now: what needs none is checked
    passages = document_passages(
        model.tokenizer, text.texts, settings.document_tokens, run.request.seq_len, run.first_position
    )
    sites = {name: run.site(name) for name in saes}
    pooled = pool(model, passages, saes, sites)
    probing: dict[str, dict[str, Any]] = {}
    for label in probed:
        columns = {name: of.f_NxF for name, of in pooled.items()}
        columns |= {f"activations, {site.hook_name}": pooled[name].x_NxD for name, site in sites.items()}
        for name, x_NxC in columns.items():
            result = sparse_probing.compute_sparse_probing(
                x_NxC, text.labels[label], text.is_train_N, settings.k, settings.seed
            )
            probing.setdefault(name, {})[label] = result
        train, held_out = (min(of[side] for of in result.documents.values()) for side in ("train", "held_out"))
        notes.append(f"{label}: classes of {train:,} documents or more to train on, {held_out:,} or more held out")
        if result.left_out:
            notes.append(f"{label}: too few documents of {', '.join(result.left_out)}: left out")
    if probed:
        yield METRICS["probing"], probing
    if paired:
        rows = {name: of._replace(x_NxD=of.x_NxD[either_N], f_NxF=of.f_NxF[either_N]) for name, of in pooled.items()}
        is_train_N = text.is_train_N[either_N]
        yield (
            METRICS["scr"],
            {
                name: spurious_correlation.compute_spurious_correlation(
                    of, concepts, is_train_N, settings.n_ablated, settings.seed
                )
                for name, of in rows.items()
            },
        )


def refuse_too_many(settings: SAEBench, saes: dict[str, SAE]) -> None:
    features = min(len(sae.W_dec) for sae in saes.values())
    columns = min(features, *(sae.W_dec.shape[1] for sae in saes.values()))
    if "probing" in settings.metrics and (k := max(settings.k)) > columns:
        raise InputError(f"--k {k}: there are only {columns} to choose from")
    if "scr" in settings.metrics and (n := max(settings.n_ablated)) > features:
        raise InputError(f"--n-ablated {n}: the dictionary has {features} features")


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


def on_words(settings: SAEBench, run: FinishedRun, saes: dict[str, SAE], notes: list[str]) -> dict[str, Any]:
    from analysis.quality import absorption
    from analysis.quality.pooling import pool
    from harvest.text.passages import spelling

    model = run.language_model
    asked = spelling(
        model.tokenizer,
        settings.words,
        settings.icl_examples,
        run.request.seq_len,
        settings.train_share,
        settings.seed,
    )
    pooled = pool(model, asked.passages, saes, {name: run.site(name) for name in saes})
    answers = {
        name: absorption.compute_absorption(of, asked.words, asked.letters_N, asked.is_train_N)
        for name, of in pooled.items()
    }
    for name, of in pooled.items():
        if not (of.f_NxF[asked.is_train_N] != 0).any():
            notes.append(f"{name}: none of its features fires on a word to train on: its absorption is not measured")
    judged = sorted({letter for of in answers.values() for letter in of.letters})
    notes.append(
        f"absorption: {len(asked.words):,} words, examples before each: {asked.n_examples}; letters that the model "
        f"shows (a probe's F1 ≥ {absorption.MIN_PROBE_F1}): {' '.join(judged) or 'none'}. SAEBench advises models "
        "of 2B parameters or more; where F1 (of the split) is far below probe (its F1), there is no letter to absorb"
    )
    return answers


def write_benchmark(
    question: str, answer: dict[str, Any], settings: SAEBench, run: FinishedRun, members: Sequence[str]
) -> None:
    """analysis/<question>.json of the run."""
    from harvest.files import write_json

    directory = run.path / "analysis"
    directory.mkdir(exist_ok=True)
    record = asdict(settings) | {"dataset": str(settings.dataset or "bundled"), "member": list(members)}
    record |= {"model": run.model_location, "seq_len": run.request.seq_len, "first_position": run.first_position}
    write_json(directory / f"{question}.json", {"settings": record, "members": plain(answer)})


def plain(answers: Any) -> Any:
    """As JSON has it."""
    return {name: plain(of) for name, of in answers.items()} if isinstance(answers, dict) else asdict(answers)
