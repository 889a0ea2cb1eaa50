"""The required content of the files under RUN/analysis. It is checked on reading, because runs are shared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from analysis.runs.families import Spread
from analysis.stats import Estimate
from sae_jax.shapes import Count, Name, Shape, Share, Text


class StudyAnswer(Shape):
    question: Text
    answer: Text
    findings: list[Text] = []  # earlier studies have none
    measured: Text
    table: dict[str, dict[str, Estimate]]
    kinds: dict[str, Text] = {}  # earlier studies have none
    uncertainty: Text
    not_shown: Text


class Study(Shape):
    """The content of study.json."""

    answers: list[StudyAnswer]


Matrix = list[list[float | None]]


class PairGroup(Shape):
    differ: Text
    pairs: Count
    shared: Spread
    chance: Spread
    mmcs: Spread
    shared_by_activation: Spread | None


class Comparison(Shape):
    """The content of comparison.json."""

    members: list[Name]
    dead: list[Name]
    arrays_crc32: Count
    labels: list[Text]
    alive: list[Count]
    threshold: float
    shared_MxM: Matrix
    chance_MxM: Matrix
    mmcs_MxM: Matrix
    matched_cosine_MxM: Matrix
    rows: Count
    shared_by_activation_MxM: Matrix | None
    confirmed_MxM: Matrix | None
    groups: list[PairGroup]
    other_seeds: dict[Name, Annotated[int, Field(ge=1)]]


class Clusters(Shape):
    """The content of clusters-MEMBER.json."""

    arrays_crc32: Count
    names: list[Text]
    sizes: list[Count]
    pca_variance: tuple[float, float]
    method: Literal["UMAP", "PCA"]
    noise: Share
    floor: float
    cohesion: float
    alive: Count
    dead: Count


class Accuracy(Shape):
    one: float = Field(alias="1")


class Probe(Shape):
    accuracy: Accuracy


class Absorbed(Shape):
    fraction: float | None


class BenchmarkAnswers(Shape):
    sparse_probing: dict[Text, Annotated[dict[str, Probe], Field(min_length=1)]]
    absorption: dict[Text, Absorbed]


class SparseProbing(Shape):
    """The content of sparse_probing.json."""

    members: dict[Text, Annotated[dict[str, Probe], Field(min_length=1)]]


class Absorption(Shape):
    """The content of absorption.json."""

    members: dict[Text, Absorbed]


class Removed(Shape):
    score: dict[str, float | None]


class SpuriousCorrelation(Shape):
    """The content of spurious_correlation.json."""

    members: dict[Text, Removed]


class Note(Shape):
    star: bool
    text: Text


class Notes(Shape):
    """The content of notes.json: notes by member and by the number of the feature."""

    notes: dict[Name, dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Note]]


class Benchmarks(Shape):
    """The content of study_benchmarks.json."""

    documents: Count
    answers: BenchmarkAnswers
    notes: list[Text]
