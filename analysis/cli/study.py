"""Answer five questions about a run, with intervals over seeds.

1. How do different activation functions affect feature learning?
2. What drives concept emergence when training on transformer activations?
3. How reliable are activation frequency patterns as indicators of feature specialization?
4. Can feature behaviour during training be quantified and seen?
5. How do sparsity mechanisms affect the interpretability of features?

python main.py study RUN                         # measures every member, prints the answers, draws the figures
python main.py study RUN --control RUN_RANDOM    # compares with a run on the same model with shuffled weights
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from numbers import Integral
from pathlib import Path

from analysis.cli.flags import filled, parsed, place
from analysis.cli.output import Output
from analysis.ui.terminal.wording import counted
from harvest.flags import DEVICE, WHERE, Allowed, Flags, flag
from harvest.request import default_cache_dir

ENOUGH = Allowed(
    Integral, lambda v: 800 <= v < 2**31, "a whole number, 800 or more, so that each label has enough of them"
)


@dataclass(frozen=True)
class Options(Flags):
    run: Path = place("RUN", "a run directory")
    control: Path | None = flag(
        None, "a run on the same model with shuffled weights (trained with --control random-weights)"
    )
    documents: int = flag(
        5000,
        "most documents of the bundled corpus for training and testing probes, at least 800; fewer are faster",
        ENOUGH,
    )
    device: str = flag("auto", WHERE, DEVICE)
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations are kept")


def run(argv: list[str]) -> None:
    values = parsed("study", __doc__, argv, Options, Output)
    options, output = filled(Options, values), filled(Output, values)
    from analysis.runs.finished import FinishedRun, can_be_kept
    from analysis.ui.terminal.tables import StudyTable

    finished = FinishedRun.open(options.run, options.device)
    shuffled = finished.opened_control(options.control) if options.control else None
    with output.terminal() as terminal:
        terminal.begin(f"loading the libraries to measure {counted(len(finished.members), 'member')} of {options.run}")
        from analysis.study.maps import draw
        from analysis.study.measures import collect_measures
        from analysis.study.questions import study
        from analysis.study.record import study_record, write_study

        how = (options.cache_dir, options.documents, terminal.progress, terminal.say)
        runs = [finished, shuffled] if shuffled else [finished]
        measured = []
        for number, of in enumerate(runs, 1):
            terminal.say(f"run {number} of {len(runs)}, {of.path}: its features, then probes, then comparisons")
            measured.append(collect_measures(of, *how))
        measures, control = measured[0], measured[1] if shuffled else None
        terminal.begin("answering the five questions")
        answers = study(measures, control)
        terminal.say(
            "\n".join([f"\nIn short, {date.today().isoformat()}:", *(f"{a.question} {a.answer}" for a in answers)])
        )
        for number, answer in enumerate(answers, 1):
            terminal.say(f"\n{number}. {answer.question}\n{answer.measured}")
            if any(answer.table.values()):
                terminal.show(StudyTable(answer.table))
            for finding in answer.findings:
                terminal.say(f"- {finding}")
            terminal.say(f"Limits: {answer.not_shown}")
        for uncertainty in dict.fromkeys(answer.uncertainty for answer in answers):
            terminal.say(f"\nUncertainty of the numbers: {uncertainty}")
        record = study_record(answers, measures, control)
        if can_be_kept(finished.path, terminal.say):
            terminal.begin("drawing the figures")
            maps = draw(measures, terminal.say)
            paths = write_study(answers, finished.path, record)
            terminal.say(f"\nfigures: {finished.path / 'figures'}: {', '.join([*(p.stem for p in paths[:-1]), *maps])}")
            terminal.say(f"all numbers: {paths[-1]}")
    output.write(record)
