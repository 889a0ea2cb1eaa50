"""Answer five questions about a finished run whose members have several seeds, with intervals over the seeds.

1. How do different activation functions affect feature learning?
2. What drives concept emergence when training on transformer activations?
3. How reliable are activation frequency patterns as indicators of feature specialization?
4. Can feature behaviour during training be quantified and seen?
5. How do sparsity mechanisms affect the interpretability of features?

python main.py study RUN                         # measures every member, prints the answers, draws the figures
python main.py study RUN --control RUN_RANDOM    # compares with a run on the same model with shuffled weights
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cli.flags import filled, parsed, place
from harvest.request import default_cache_dir, flag

if TYPE_CHECKING:
    from analysis.runs.finished import FinishedRun
    from analysis.study.measures import PopulationMeasures
    from analysis.study.questions import Answer


@dataclass(frozen=True)
class Options:
    run: Path = place("RUN", "a run directory")
    control: Path | None = flag(
        None, "a run on the same model with shuffled weights (trained with --control random-weights)"
    )
    documents: int = flag(5000, "largest number of documents of the bundled corpus for training and testing probes")
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations are kept")


def run(argv: list[str]) -> None:
    options = filled(Options, parsed("study", __doc__, argv, Options))

    from analysis.runs.finished import FinishedRun, can_be_kept
    from analysis.study.maps import draw
    from analysis.study.measures import collect_measures
    from analysis.study.questions import study
    from analysis.ui.terminal.live import Terminal
    from analysis.ui.terminal.tables import study_table

    finished = FinishedRun.open(options.run)
    shuffled = finished.opened_control(options.control) if options.control else None
    with Terminal() as terminal:
        measures = collect_measures(finished, options.cache_dir, options.documents, terminal.progress, terminal.say)
        control = None
        if shuffled:
            control = collect_measures(shuffled, options.cache_dir, options.documents, terminal.progress, terminal.say)
        answers = study(measures, control)
        for number, answer in enumerate(answers, 1):
            terminal.say(f"\n{number}. {answer.question}\n{answer.measured}")
            terminal.show(study_table(answer.table))
            terminal.say(f"{answer.answer}\nUncertainty: {answer.uncertainty}\nNot shown: {answer.not_shown}")
        if not can_be_kept(finished.path, terminal.say):
            return
        first_alive = [
            next((name for name in names if name in measures.decoders), names[0]) for names in measures.kinds.values()
        ]
        maps = draw(measures, first_alive, terminal.say)
        paths = written(answers, finished, shuffled, measures)
        terminal.say(f"\nfigures: {finished.path / 'figures'}: {', '.join([*(p.stem for p in paths[:-1]), *maps])}")
        terminal.say(f"all numbers: {paths[-1]}")


def written(
    answers: list[Answer], finished: FinishedRun, shuffled: FinishedRun | None, measures: PopulationMeasures
) -> list[Path]:
    """Write the figures and analysis/study.json. Returns their paths, study.json last."""
    from analysis.plots.style import save
    from harvest.files import write_json

    paths, records = [], []
    for number, answer in enumerate(answers, 1):
        for name, figure in answer.figures.items():
            paths.append(save(figure, finished.path / "figures" / f"study-{number}-{name}")[0])
        plain = asdict(replace(answer, figures={}))
        records.append(plain | {"figures": [f"study-{number}-{name}" for name in answer.figures]})
    record = {"schema": 1, "run": finished.path.resolve().name, "control": shuffled and shuffled.path.resolve().name}
    record |= {"values": measures.values, "notes": measures.notes, "answers": records}
    write_json(finished.path / "analysis" / "study.json", record)
    return [*paths, finished.path / "analysis" / "study.json"]
