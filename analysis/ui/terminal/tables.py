"""Tables that commands print: presets, plans, frontiers, a study's answers, benchmarks, steered texts, attributions."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderResult
from rich.filesize import decimal as size_text
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from analysis.interventions.steering import UNSTEERED
from analysis.ui.terminal.fitted import Fitted, Spare
from analysis.ui.terminal.wording import counted, duration_text, number_cells, place_text, share_text, signed
from harvest.request import Site

if TYPE_CHECKING:
    from analysis.comparison.frontier import Frontier
    from analysis.interventions.attribution import Attribution
    from analysis.interventions.steering import Steered, Texts
    from analysis.runs.families import Spread
    from analysis.stats import Estimate
    from sae_jax.cost import Plan
    from sae_jax.presets import Preset

RUN_HEADS = ("state", "date", "members", "best expl. var.", "model and site")
MEASURE_COLUMNS = 24  # least width of the names of measures
EVALUATION_SPARE = Spare(("CE clean", "KL rec.", "dead", "CE"), "--json")


def preset_table(presets: dict[str, Preset]) -> Table:
    """A row for each preset: its description, its source, its published results and what is not reproduced."""
    table = Table(box=box.SIMPLE_HEAD, show_lines=True, pad_edge=False)
    for column in ("--preset", "description, source, published results"):
        table.add_column(column, overflow="fold", no_wrap=column == "--preset")
    for name, preset in presets.items():
        lacks = "\nnot reproduced (original; here):" * bool(preset.not_followed) + "".join(
            f"\n- {text}" for text in preset.not_followed
        )
        table.add_row(name, f"{preset.about}\nsource: {preset.source}\npublished results: {preset.published}{lacks}")
    return table


def plan_cells(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """(header, a row for each member) of the table of a dry run."""
    header = ["member", "group", "parameters", "memory", "time"]
    rows = [
        [p.member.id, str(p.group), f"{p.parameters:,}", size_text(p.bytes), duration_text(p.seconds)]
        for p in plan.members
    ]
    return header, rows


def plan_text(plan: Plan) -> str:
    memory, groups = size_text(sum(p.bytes for p in plan.members)), max(p.group for p in plan.members)
    axes, device = plan.mesh.axes, plan.machine.device
    where = f"on {counted(axes.devices, device.name)}, limited by {plan.limit}" if device else "on this CPU"
    text = (
        f"{counted(len(plan.members), 'member')} in {counted(groups, 'group')}, {plan.steps:,} steps each: "
        f"{memory} for weights and optimizer, about {size_text(sum(plan.memory.host.values()))} in total, "
        f"about {duration_text(plan.seconds)} to compile and train {where}"
    )
    if device is None and axes.devices == 1:
        return text
    parts = ", ".join(f"{size_text(size)} for {purpose}" for purpose, size in plan.memory.device.items())
    cores = "" if device else " (each device is a core of the CPU)"
    return (
        f"{text}\n--mesh {axes}{cores}: {counted(plan.mesh.side_by_side, 'member')} of a group at a time on each "
        f"device, which needs about {size_text(sum(plan.memory.device.values()))}: {parts}"
    )


def evaluation_cells(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, a row for each dictionary) of the table of `evaluate`: intervals in parentheses."""
    header = ["dictionary", "expl. var.", "L0", "dead", "CE clean", "CE", "CE rec.", "KL rec."]
    rows = []
    for dictionary in report["dictionaries"]:
        metrics, intervals = dictionary["metrics"], dictionary["intervals"]
        _, variance, l0, dead = number_cells(metrics)
        losses = [share_text(metrics.get(name)) for name in ("ce_clean", "ce_sae")]
        shares = [share_text(metrics.get(n), intervals.get(n)) for n in ("ce_recovered", "kl_recovered")]
        rows.append([dictionary["name"], variance, l0, dead, *losses, *shares])
    return header, rows


def frontier_table(frontier: Frontier) -> Group:
    """A table for each panel with a row for each point: means over seeds, standard deviations in parentheses."""
    from analysis.comparison.frontier import METRICS

    metrics = [name for name in METRICS if any(name in point.metrics for point in frontier.points)]
    heads = ("kind", "target", "seeds", "L0", *(METRICS[name] for name in metrics))
    digits = {"l0": 1, **dict.fromkeys(metrics, 3)}
    panels: dict[str, list[tuple[str, ...]]] = {}
    for point in frontier.points:
        cells = (spread_text(point.metrics.get(name), of) for name, of in digits.items())
        panels.setdefault(point.panel, []).append((point.kind, f"{point.asked:g}", str(len(point.seeds)), *cells))
    spreads = [spread for point in frontier.points for spread in point.metrics.values()]
    legend = "means over seeds, in parentheses their standard deviations"
    if all(spread.deviation is None for spread in spreads):
        legend = "one seed for each point"
    spare = Spare(("seeds", "target"), "--json")
    parts = [part for panel, rows in panels.items() for part in (Text(panel, style="dim"), fitted(heads, rows, spare))]
    return Group(*parts, Text(legend, style="dim"))


def spread_text(spread: Spread | None, digits: int) -> str:
    if spread is None or not math.isfinite(spread.mean):
        return "-"
    mean = f"{spread.mean:.{digits}f}"
    return mean if spread.deviation is None else f"{mean} ({spread.deviation:.{digits}f})"


@dataclass(frozen=True)
class StudyTable:
    """A row for each measure and a column for each family: means over seeds with 95% intervals.

    On a narrow screen the interval stands below its mean. If that is still too wide, there are several tables.
    """

    estimates: dict[str, dict[str, Estimate]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        families = list(self.estimates)
        choices = [(len(families), " "), *((count, "\n") for count in range(len(families), 0, -1))]
        for count, gap in choices:
            parts = [self.part(families[start : start + count], gap) for start in range(0, len(families), count)]
            lines = (line for part in parts for line in Segment.split_lines(console.render(part, options)))
            if max(map(Segment.get_line_length, lines)) <= options.max_width:
                break
        yield from parts

    def part(self, families: list[str], gap: str) -> Table:
        """The table of some families, with `gap` between a mean and its interval."""
        from analysis.study.tables import lines_of

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", overflow="fold", min_width=MEASURE_COLUMNS)
        for family in families:
            table.add_column(family, overflow="fold")
        for measure, cells in lines_of({family: self.estimates[family] for family in families}):
            table.add_row(measure, *(cell.replace(" [", f"{gap}[") for cell in cells))
        for column in table.columns[1:]:
            column.min_width = max(
                (cell_len(line) for cell in column.cells for line in str(cell).split("\n")), default=1
            )
        return table


def benchmark_tables(answers: dict[str, dict[str, Any]]) -> Group:
    """A table for each benchmark, with a row for each member."""
    rows: dict[str, dict[str, dict[str, str]]] = {}
    for name, by_label in answers.get("sparse_probing", {}).items():
        cells = rows.setdefault("sparse probing: accuracy with k features", {}).setdefault(name, {})
        for k in next(iter(by_label.values())).accuracy:
            mean = sum(probing.accuracy[k] for probing in by_label.values()) / len(by_label)
            cells[k if k == "all" else f"k={k}"] = f"{mean:.3f}"
    for name, absorption in answers.get("absorption", {}).items():
        rows.setdefault("absorption", {})[name] = {
            "mean": number(absorption.fraction),
            "full": number(absorption.full),
            "features split": number(absorption.split_features),
            "F1": number(absorption.split_f1),
            "probe's F1": number(absorption.probe_f1),
        }
    for name, removal in answers.get("spurious_correlation", {}).items():
        cells = {f"n={n}": number(value) for n, value in removal.score.items()}
        rows.setdefault("spurious correlation removal: score with n features ablated", {})[name] = cells
    tables = []
    for title, by_member in rows.items():
        heads = list(dict.fromkeys(head for cells in by_member.values() for head in cells))
        lines = [(name, *(cells.get(head, "") for head in heads)) for name, cells in by_member.items()]
        tables.append(fitted(("", *heads), lines, Spare(tuple(heads[-2:0:-1]), "--json"), title=title))
    return Group(*tables)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def steered_texts_table(steered: Steered) -> Table:
    """The first text of each prompt, unsteered beside steered by the feature, with a row for each strength."""
    direction, curve = next(iter(steered.directions.items()))
    chosen, best = steered.best(direction), " (best)" if len(curve) > 1 else ""
    table = Table(UNSTEERED, direction, box=box.SIMPLE_HEAD, show_lines=True, pad_edge=False)
    for column in table.columns:
        column.ratio, column.overflow = 1, "fold"
    if (samples := len(steered.plain[UNSTEERED].texts[0])) > 1:
        table.caption = f"the first of {samples} texts for each prompt; --json FILE keeps them all"
        table.caption_justify = "left"
    for number, prompt in enumerate(steered.prompts):
        plain = Text.assemble((prompt, "dim"), steered.plain[UNSTEERED].texts[number][0])
        for texts in curve:
            label = "" if steered.mode == "ablate" else f"{steered.mode} {texts.strength:g}{best * (texts is chosen)}: "
            table.add_row(plain, Text.assemble((label, "bold"), (prompt, "dim"), texts.texts[number][0]))
            plain = Text()
    return table


def steered_measures_table(steered: Steered) -> Fitted:
    """A row for each direction and strength and for the unsteered texts. `steer --help` explains the columns."""
    plain = steered.plain[UNSTEERED].probability

    def row(name: str, texts: Texts, strength: str) -> tuple[str, ...]:
        change = signed(texts.probability - plain, 5)
        numbers = (f"{texts.probability:.5f}", change, f"{texts.perplexity:.1f}", f"{texts.distinct:.0%}")
        return name, strength, *numbers

    rows = [row(name, texts, "") for name, texts in steered.plain.items()]
    for name, curve in steered.directions.items():
        rows += [row(name, texts, "" if steered.mode == "ablate" else f"{texts.strength:g}") for texts in curve]
    heads = ("", "strength", "watched tokens' probability", "change", "perplexity", "distinct tokens")
    return fitted(heads, rows, Spare(("change", "distinct tokens"), "--json"), words=("",))


def attribution_table(attribution: Attribution, tokens: list[str]) -> Fitted:
    """A row for each feature, with the position and the token of its largest contribution. `tokens` is the prompt."""
    rows = [
        (
            str(effect.feature),
            signed(effect.attribution, 4),
            signed(effect.ablation, 4),
            f"{effect.value:.2f}",
            str(effect.position),
            repr(tokens[effect.position]),
        )
        for effect in attribution.effects
    ]
    heads = ("feature", "attribution", "ablation", "value", "position", "token")
    return fitted(heads, rows, Spare(("position", "value"), "--json"), words=("token",))


def fitted(
    heads: Sequence[str], rows: Sequence[Sequence[str]], spare: Spare, words: Collection[str] = (), title: str = ""
) -> Fitted:
    """A table without the spare columns that have no room. The first column, which is left-aligned, stays whole.

    So do numbers, in the other columns. Columns of `words` may have several lines.
    """

    def draw(without: Collection[str]) -> Table:
        table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        kept = [number for number, head in enumerate(heads) if head not in without]
        for number in kept:
            head, is_words = heads[number], heads[number] in words
            side: JustifyMethod = "left" if is_words or not number else "right"
            table.add_column(head.replace(" ", "\n"), justify=side, no_wrap=not is_words, overflow="fold")
        for cells in rows:
            table.add_row(*(Text(cells[number]) for number in kept))
        return table

    return Fitted(draw, spare)


def runs_table(runs: list[dict[str, Any]]) -> Fitted:
    """A row for each run of `runs_in`."""

    def draw(without: Collection[str]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("run", no_wrap=True)
        rows = [run_cells(run) for run in runs]
        for head in (head for head in RUN_HEADS if head not in without):
            is_number = head in ("members", "best expl. var.")
            words = head.replace(" ", "\n", 1) if is_number else head
            table.add_column(words, no_wrap=head != "model and site", justify="right" if is_number else "left")
        for run, cells in zip(runs, rows, strict=True):
            table.add_row(Text(run["name"]), *(Text(cells[h]) for h in RUN_HEADS if h not in without))
        return table

    return Fitted(draw, Spare(("model and site", "members", "date"), "--json"))


def run_cells(run: dict[str, Any]) -> dict[str, str]:
    sites = [place_text(site.hook, site.layer) for name in run.get("sites", []) if (site := Site.named(name))]
    where = ", ".join(dict.fromkeys((Path(run["model"]).name, *sites))) if sites else ""
    texts = (run["state"], run["date"].replace("T", " "), str(run.get("members", "")))
    return dict(zip(RUN_HEADS, (*texts, share_text(run.get("explained_variance")), where), strict=True))
