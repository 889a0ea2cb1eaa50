"""The command find-feature on ten subjects of the bundled corpus, and its false alarms on nonsense phrases.

python tests/benchmarks/find_feature.py RUN [--nonsense 10] [--seed 0]

RUN is a run on the bundled model and corpus. A nonsense phrase has no passages. Its examples are random sentences, one
per document, as many as a subject has passages, so any feature that passes is a false alarm. Prints a Markdown table
with figures from the scoring set, which chooses nothing.
"""

import argparse
from pathlib import Path

import numpy as np

from analysis.concepts.search import SearchSettings, search
from analysis.runs.finished import FinishedRun
from analysis.ui.terminal.wording import share_text
from harvest.text.concepts import sentences_of
from harvest.text.documents import documents

SUBJECTS = (
    "the Golden Gate Bridge",
    "quantum mechanics",
    "a hurricane",
    "the Silk Road",
    "coral reefs",
    "chocolate cake",
    "human rights",
    "a goalkeeper",
    "vaccines",
    "the Bible",
)  # these subjects were committed before the first search
SYLLABLES = ("bro", "dax", "fim", "gul", "kep", "lun", "mib", "pol", "tav", "zor")


def random_sentences(texts: list[str], count: int, rng: np.random.Generator) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        text = texts[rng.integers(len(texts))]
        spans = sentences_of(text)
        start, stop = spans[rng.integers(len(spans))]
        if stop - start > 8:  # so that it has at least two tokens
            found.append(text[start:stop])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--nonsense", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    finished, options = FinishedRun.open(args.run), SearchSettings(seed=args.seed)
    model, dictionaries = finished.language_model, {name: finished.dictionary(name) for name in finished.members}
    texts, rng = [text for text in documents(finished.corpus) if text], np.random.default_rng(args.seed)
    print("| phrase | passages, scored | best feature | AUROC where chosen | AUROC | without the phrase |", end="")
    print(" precision, coverage | difference in means | pass |\n|" + "---|" * 9)
    sizes: list[int] = []
    hits = alarms = 0
    asked: list[tuple[str, int | None]] = [(subject, None) for subject in SUBJECTS]
    for i in range(args.nonsense):
        syllables = [SYLLABLES[j] for j in rng.integers(len(SYLLABLES), size=3)]
        asked.append(("".join(syllables), i % len(SUBJECTS)))
    for phrase, like in asked:
        examples = [] if like is None else random_sentences(texts, sizes[like], rng)
        of, result = search(phrase, finished, model, dictionaries, options, examples, [])
        best, (baseline,) = result.features[0], result.baselines.values()
        passing = sum(found.passes for found in result.features)
        if like is None:
            sizes.append(int(of.is_concept_N.sum()))
            hits += passing > 0
        else:
            alarms += passing > 0
        d, without = best.detector, best.detector.auroc_without_phrase
        cells = [
            phrase if like is None else f"*{phrase}*",
            f"{of.is_concept_N.sum()}, {result.sets['scoring']['concept']}",
            f"{best.member.partition('-')[0]} {best.member.rpartition('-')[2]} #{best.feature}",
            f"{best.chosen_by:.3f}",
            share_text(d.auroc, d.auroc_interval),
            "–" if without is None or like is not None else f"{without:.2f}",
            f"{'–' if d.precision is None else format(d.precision, '.2f')}, {d.coverage:.2f}",
            share_text(baseline.auroc, baseline.auroc_interval),
            f"{passing} of {len(result.features)}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nfound: {hits} of {len(SUBJECTS)} subjects; false alarms: {alarms} of {args.nonsense} nonsense phrases")


if __name__ == "__main__":
    main()
