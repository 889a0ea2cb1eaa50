"""The report of a real run on a hostile corpus: its content, that no script of the corpus runs, and its rendering."""

import html
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from analysis.cli.report import run as report
from analysis.cli.train import parse
from analysis.features.statistics import Features
from analysis.runs.finished import FinishedRun
from analysis.runs.reproduce import reproduction_command
from analysis.ui.report import figures
from analysis.ui.report.contents import compose
from harvest.errors import InputError
from harvest.files import read_json, write_json
from tests.command_line import THREE_KINDS, shared_cache, typed

SCRIPT = "</script><script>document.title='owned';alert(1)</script>"
IMAGE = "<img src=x onerror=alert(2)>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache) -> Path:
    """A run on a corpus of scripts. Its topics are scripts, too, because pages show the topics of features."""
    folder = tmp_path_factory.mktemp("report")
    corpus = folder / "hostile.jsonl"
    lines = [{"text": f"{SCRIPT} {IMAGE} {n} & <b>bold</b> " * 4, "topic": (SCRIPT, IMAGE)[n % 2]} for n in range(120)]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [str(corpus) if flag == "bundled" and at == 3 else flag for at, flag in enumerate(THREE_KINDS)]
    trained = typed(
        *flags, "--epochs", "2", "--ce-windows", "0", "--snapshots", "6", "--run-dir", folder / "run", cache=cache
    )
    assert trained.returncode == 0, trained.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def page(run, cache) -> Path:
    done = typed("report", run, cache=cache)
    assert done.returncode == 0, done.stderr
    return run / "report.html"


def own_scripts(text: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", text, re.S)


def test_it_has_every_member_and_every_section(run, page):
    text = page.read_text()
    for member in json.loads((run / "results.json").read_text())["members"]:
        assert f'<th scope="row" data-value="{member["id"]}">' in text
        assert f"{member['metrics']['explained_variance']:.3f}" in text
    titles = re.findall(r"<h[23][^>]*>(.*?)</h", text)
    assert {"Members", "Training", "Densities", "Comparison", "Emergence", "Features"} <= set(titles)
    assert f"main.py study {run}" in text, "what was not computed names the command that computes it"
    linked, present = (re.findall(pattern, text) for pattern in (r'<a href="#([^"]*)"', r'<h3 id="([^"]*)"'))
    assert "clusters-0" in present and linked == ["pareto", *present], "a section without figures has a link, too"


def test_captions_are_sentences_about_what_is_shown(run, page):
    text = page.read_text()
    (below,) = re.findall(r"<figcaption>(Matched features of .*?)</figcaption>", text)
    assert all(sentence[0].isupper() for sentence in re.split(r"(?<=[.]) ", below))
    assert "before the decoder is fitted at the end" in text and "therefore differ from the table of members" in text
    assert "CE recovered" not in text, "it was not measured"


def test_one_member_is_not_called_members(run, page):
    finished = FinishedRun.open(run)
    name = next(iter(finished.members))
    (drawn,) = figures.densities(finished, {name: Features.load(run / "analysis" / "features" / f"{name}.npz")})
    assert "fire, in 1 member; " in drawn.alt
    alone = replace(finished, results=finished.results | {"members": finished.results["members"][:1]})
    assert figures.pareto([alone]).alt.startswith("Explained variance against L0 of 1 member: ")


def test_the_command_is_broken_at_spaces_only(run, page):
    text = page.read_text()
    command = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", text)[0]
    finished = FinishedRun.open(run)
    words = reproduction_command(finished.config, finished.results).split(" ")
    assert re.findall(r'<span class="unbroken">(.*?)</span>', command) == [html.escape(word) for word in words]
    assert ".unbroken { white-space: nowrap; }" in text and "overflow-wrap: anywhere; }\ncode" not in text
    assert '<span class="unbroken">--emit' not in text and "are largest, the token marked" not in text
    assert "Half of the features that are shown of a member are its most specialized ones over chance. " in text


def test_headings_go_down_one_by_one_and_figures_have_words(page):
    text = page.read_text()
    levels = [int(level) for level in re.findall(r"<h([1-6])", text.split("<main>")[0] + text.split("<main>")[1])]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert '<html lang="en">' in text
    alts = re.findall(r'<svg role="img" aria-label="([^"]*)"', text)
    assert len(alts) == 2 * text.count("<figure") > 6, "each figure for wide and for narrow screens"
    assert all(re.search(r"\d", alt) for alt in alts), "made from the figure's numbers"
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids)), "else figures would be drawn with the gradients and clips of others"


def test_nothing_of_the_corpus_is_markup(page):
    text = page.read_text()
    assert html.escape(IMAGE[:4]) in text, "the corpus is shown"
    assert "<img src=x" not in text
    assert "<b>bold" not in text
    assert len(own_scripts(text)) == 1
    assert not any("owned" in script for script in own_scripts(text))
    assert text.count("</script>") == text.count("<script")


def test_the_report_loads_nothing_from_a_network(page):
    text = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "default-src 'none'" in text
    assert "unsafe-eval" not in text


def test_each_figure_is_also_written_as_a_file(run, page):
    names = {path.stem for path in (run / "figures").glob("*.svg")}
    assert {"pareto", "training", "densities", "comparison"} <= names
    for name in names:
        assert "<text" in (run / "figures" / f"{name}.svg").read_text(), "letters as letters, not as outlines"
        assert (run / "figures" / f"{name}.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_report_of_eight_runs_with_three_members_is_under_5_mb(run, page, cache, tmp_path):
    copies = [shutil.copytree(run, tmp_path / f"run{n}") for n in range(8)]
    for n, copy in enumerate(copies):
        config = json.loads((copy / "config.json").read_text())
        config["asked"]["train"]["data_seed"] = n  # otherwise the same members would be given twice
        write_json(copy / "config.json", config)
    done = typed("report", *copies, "--to", tmp_path / "all.html", cache=cache)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "all.html").stat().st_size < 5e6
    assert len(re.findall("<h2>run[0-7]</h2>", (tmp_path / "all.html").read_text())) == 8


def test_a_member_that_failed_is_named(run, page, cache, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    results = json.loads((copy / "results.json").read_text())
    results["members"][0] |= {"failed": {"step": 7, "reason": "its loss is not finite"}, "metrics": None}
    write_json(copy / "results.json", results)
    done = typed("report", copy, cache=cache)
    assert done.returncode == 0, done.stderr
    assert "stopped at step 7: its loss is not finite" in (copy / "report.html").read_text()


def test_the_report_of_a_failed_run_says_so(run, cache, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    results = json.loads((copy / "results.json").read_text())
    for member in results["members"]:
        member |= {"failed": {"step": 7, "reason": "its loss is not finite"}, "metrics": None}
    write_json(copy / "results.json", results)
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"member": "relu-f48')
    write_json(copy / "analysis" / "study.json", {"answers": []})
    done = typed("report", copy, cache=cache)
    assert done.returncode == 0, done.stderr
    text = (copy / "report.html").read_text()
    assert "All members failed: there are no features to show." in text and "How it was trained is not shown: " in text
    assert re.search("The study was not run: python .*main.py study", text)
    assert "is damaged" in text and text.count("stopped at step 7: its loss is not finite") == 3


def test_the_command_in_the_report_trains_the_same_run(run):
    config = json.loads((run / "config.json").read_text())
    results = json.loads((run / "results.json").read_text())
    words = reproduction_command(config, results).split()
    request, train, options, _ = parse(words[2:])
    assert json.loads(json.dumps(request.to_json())) == config["asked"]["harvest"]
    assert json.loads(json.dumps(train.to_json())) == config["asked"]["train"]
    assert (options.snapshots, options.ce_windows) == (6, 0)


def test_the_command_in_the_report_names_the_bundled_model_if_the_run_fell_back_to_it(run):
    config, results = (json.loads((run / name).read_text()) for name in ("config.json", "results.json"))
    config["asked"]["harvest"] |= {"model_name": None, "dataset": "mine.txt"}
    for kind, fell_back in (("model", True), ("dataset", False)):
        config["stores"][0][kind]["fell_back"] = fell_back
    request, *_ = parse(reproduction_command(config, results).split()[2:])
    assert (request.model_name, request.dataset) == ("bundled", "mine.txt")


def test_invalid_reports_are_refused_with_the_reason(run, cache, tmp_path):
    for argv, words in (
        ((tmp_path / "no",), "no such run"),
        ((run, "--control", run), "give a run trained with --control random-weights"),
        ((run, "--to", tmp_path / "no" / "x.html"), "an existing folder"),
        ((run, run), "give each run once"),
    ):
        with pytest.raises(InputError, match=words):
            report([*map(str, argv), "--cache-dir", str(cache)])


def test_features_that_cannot_be_computed_are_named(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("analysis"))
    config = read_json(copy / "config.json", "")
    config["stores"][0]["identity"]["windows_hash"] = "0" * 32
    write_json(copy / "config.json", config)
    finished = FinishedRun.open(copy)
    said = []
    (part,) = compose([finished], None, tmp_path / "cache", lambda *_: None, said.append).parts
    assert "not shown" in part.missing["features"]
    assert part.missing["features"] in said


PAGE = {"light": (255, 255, 255), "dark": (0x15, 0x17, 0x1B)}


def corners(chart) -> set[tuple[int, ...]]:
    """The colours of the four corners of a chart as it is seen."""
    pixels_HxWx4 = (255 * imread(io.BytesIO(chart.screenshot()))).round().astype(int)
    return {tuple(pixels_HxWx4[y, x, :3].tolist()) for y in (2, -3) for x in (2, -3)}


def dark_ink(label) -> bool:
    return sum(map(int, re.findall(r"\d+", label.evaluate("of => getComputedStyle(of).fill"))[:3])) < 3 * 128


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_in_a_browser(page, size, scheme):
    sync = pytest.importorskip("playwright.sync_api", reason="no playwright")
    width, height = SIZES[size]
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        asked, wrong = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert "owned" not in tab.title()
        charts = tab.locator("figure svg:visible")
        assert charts.count() == tab.locator("figure").count() > 3
        for number in range(charts.count()):
            box = charts.nth(number).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
            assert corners(charts.nth(number)) == {PAGE[scheme]}
            label = charts.nth(number).locator(".role-axis-label text, .role-legend-label text").first
            assert box["width"] > 0.7 * float(charts.nth(number).get_attribute("width")), "else letters are too small"
            assert (dark_ink(label)) == (scheme == "light")
        tab.emulate_media(media="print")
        assert corners(charts.first) == {PAGE["light"]} and dark_ink(charts.first.locator("text").first)
        tab.emulate_media(media="screen")

        members = tab.locator("select.member")
        other = members.locator("option").nth(1)
        members.focus()
        tab.keyboard.press("ArrowDown")
        assert tab.locator(f"#{other.get_attribute('value')}").is_visible()
        assert tab.locator("section.member:visible").count() == 1

        button = tab.get_by_role("button", name="EV").first
        button.focus()
        tab.keyboard.press("Enter")
        column = tab.locator("thead th").all_inner_texts().index(button.inner_text())
        cells = tab.locator(f"tbody tr td:nth-child({column + 1})").evaluate_all("of => of.map(c => +c.dataset.value)")
        assert cells == sorted(cells, reverse=True)
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert wrong == []
        browser.close()
