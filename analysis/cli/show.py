"""Show a run: finished, interrupted, or still being trained.

python main.py show RUN --pareto
python main.py show RUN --watch
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from analysis.cli.flags import filled, parsed, place
from analysis.cli.output import Output
from analysis.runs.finished import FinishedRun, can_be_kept
from analysis.ui.terminal.live import Terminal
from analysis.ui.terminal.scatter import scatter
from analysis.ui.terminal.tables import frontier_table
from analysis.ui.terminal.wording import counted, pasted
from harvest.errors import InputError
from harvest.flags import Flags, flag
from harvest.request import DEFAULT_DATASET, IMPORTED_ROWS, default_cache_dir

if TYPE_CHECKING:
    from analysis.comparison.frontier import Frontier
    from analysis.runs.live import LiveRun

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 60.0  # for a process that continues an interrupted run: until it trains, it loads and harvests
COMMANDS = {  # by the file that each command leaves in RUN
    "analysis/find": "find-feature {} {}",
    "analysis/study.json": "study {}",
    "analysis/sparse_probing.json": "saebench {}",
    "report.html": "report {}",
}
OF_TEXT = (COMMANDS["analysis/find"], COMMANDS["analysis/sparse_probing.json"])


@dataclass(frozen=True)
class Options(Flags):
    run: Path = place("RUN", "a run directory")
    pareto: bool = flag(False, "also plot explained variance against L0")
    watch: bool = flag(False, "follow the training until it is finished, also one that is being resumed")


def run(argv: list[str]) -> None:
    values = parsed("show", __doc__, argv, Options, Output)
    options, output = filled(Options, values), filled(Output, values)
    from analysis.runs.live import LiveRun

    path = options.run
    with output.terminal() as terminal:
        if not (path / "results.json").exists():
            live_run = LiveRun.open(path)
            try:
                follow(live_run, terminal, options.watch)
            except KeyboardInterrupt:
                terminal.leave_phase()
                terminal.say(pasted(f"stopped watching: {live_run.state()}"))
                raise SystemExit(130) from None
        if (path / "results.json").exists():
            record = show_finished(path, options, terminal)
        elif options.pareto:
            raise InputError(f"--pareto: {path} is not finished and has no held-out results yet: leave --pareto out")
        else:
            record = live_run.record()
    output.write(record)


def show_finished(path: Path, options: Options, terminal: Terminal) -> dict[str, Any]:
    """Print the results, and what was made of them and what was not. Returns the results."""
    results = FinishedRun.open(path).results
    frontier = show_results(path, results, terminal)
    if options.pareto:
        points = [(p.kind, p.metrics["l0"].mean, p.metrics["explained_variance"].mean) for p in frontier.points]
        if points:
            terminal.say("\n".join(scatter(points, "L0", f"explained variance{of_seeds(frontier)}")))
        else:
            terminal.say("--pareto: nothing to plot, because all members failed")
    made = sorted({re.split(r"[-.]", p.name)[0] for p in (path / "analysis").glob("*")})
    terminal.say(f"analyses: {', '.join(made)}" if made else "no analyses yet")
    say_commands("not run yet", path, results, terminal)
    return results


def of_seeds(frontier: Frontier) -> str:
    """A remark for the title of the plot if each of its points stands for several members."""
    members = sum(len(point.seeds) for point in frontier.points)
    if members == len(frontier.points):
        return ""
    return f" ({counted(len(frontier.points), 'point')}: means over the seeds of {counted(members, 'member')})"


def show_results(path: Path, results: dict[str, Any], terminal: Terminal, anew: bool = False) -> Frontier:
    """Print the results and, if a kind was trained at several sparsities, the frontier with its figure."""
    from analysis.comparison.frontier import compute_frontier, write_frontier

    frontier, figure = compute_frontier(path), path / "figures" / "frontier.svg"
    if frontier.has_curve:
        if (anew or not figure.exists()) and can_be_kept(path, terminal.say):
            from analysis.plots.frontier import frontier_chart
            from analysis.plots.style import save

            write_frontier(frontier, path / "analysis")
            save(frontier_chart(frontier), figure.with_suffix(""))
        terminal.say(frontier.title)
        terminal.show(frontier_table(frontier))
        if figure.exists():
            terminal.say(f"figure: {figure.with_suffix('.png')} and .svg")
    terminal.results(results, str(path), FinishedRun.open(path).fitted)
    return frontier


def say_commands(
    what: str, path: Path, results: dict[str, Any], terminal: Terminal, cache_dir: Path | None = None
) -> None:
    """Print the commands that were not run on a run, ready to be pasted if its text is one of ours.

    Those that need a language model are left out for rows without one.
    """
    phrase = '"the sea"' if results["dataset"]["name"] in ("bundled", DEFAULT_DATASET) else "PHRASE"
    for file, command in COMMANDS.items():
        if not (path / file).exists() and (results["model"]["name"] != IMPORTED_ROWS or command not in OF_TEXT):
            words = command.format(quote(str(path)), phrase)
            terminal.say(f"{what}: " + pasted(f"python main.py {words}{cache_flag(cache_dir)}"))


def cache_flag(cache_dir: Path | None) -> str:
    """The flag that names a cache, unless it is the usual one."""
    return f" --cache-dir {quote(str(cache_dir))}" if cache_dir and cache_dir != default_cache_dir() else ""


def follow(live_run: LiveRun, terminal: Terminal, watch: bool) -> None:
    """Show the run's latest progress once or, if `watch`, until it is finished.

    Watching also ends if no process has trained the run for PATIENCE_SECONDS.
    """
    terminal.past(live_run.losses())
    drawn, trained, waiting = 0, time.monotonic(), False
    while not live_run.finished:
        progress = live_run.progress()
        if progress and progress.step != drawn:  # each block of steps adds one point to the curves, not each poll
            terminal.training_progress(progress)
            drawn = progress.step
            if drawn == progress.total_steps and live_run.being_trained:
                terminal.begin("training is done, the members are measured on held-out rows")
        if live_run.being_trained:
            trained, waiting = time.monotonic(), False
        elif watch and not waiting:
            waiting = True
            terminal.say(pasted(live_run.state()))
            terminal.begin("waiting for a process to continue it")
        if not watch or time.monotonic() - trained > PATIENCE_SECONDS:
            break
        time.sleep(POLL_SECONDS)
    terminal.leave_phase()
    if not live_run.finished:
        terminal.say(pasted(live_run.state()))
