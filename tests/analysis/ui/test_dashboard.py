"""The dashboard: each page in Streamlit's test harness, then the real server in a real browser."""

import io
import json
import re
import shutil
import socket
import string
import sys
from itertools import islice

import matplotlib.image
import numpy as np
import pytest
from command_line import THREE_KINDS, shared_cache, trained, typed
from dashboard_browser import CHROMIUM, free_port, serving, visiting
from scipy.ndimage import binary_erosion
from sklearn.datasets import load_digits
from streamlit.testing.v1 import AppTest

import main
from analysis.cli.show import run as show
from analysis.features.contexts import token_texts
from analysis.features.statistics import Features, load_or_compute_features
from analysis.pages.notes import Note, read_notes
from analysis.plots.theme import INKS
from analysis.runs.finished import FinishedRun
from analysis.ui.dashboard.server import ADDRESS, APP, LOOPBACK, hosts
from analysis.ui.dashboard.token_html import bars, coloured, passage
from analysis.ui.terminal.screen import BEST
from harvest.files import read_json, write_json
from harvest.model.tokenizer import load_tokenizer
from harvest.sources import BUNDLED_CORPUS
from harvest.text.documents import documents
from sae_jax.best_member import best_members_of_results, best_of_results
from sae_jax.lookup import told_apart

HOSTILE = "<script>window.ran=1</script> <img src=x onerror=window.ran=1> *loud* $x$ :smile: [a](http://evil.test/) "


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    """A run of two kinds on a corpus full of scripts and markup that a page must not execute."""
    folder = tmp_path_factory.mktemp("dashboard")
    ships, moon = (
        "The ships lay in the harbour. The sea was calm. ",
        "A child went home to read a book about the moon. ",
    )
    others = [" ".join(text.split())[:400] for text in islice(documents(str(BUNDLED_CORPUS)), 150)]
    texts = (f"{HOSTILE}{ships + moon * (n % 2)}{other}" for n, other in enumerate(others))
    (folder / "hostile.txt").write_text("\n\n".join(texts))
    argv = list(THREE_KINDS)
    argv[argv.index("--dataset") + 1] = str(folder / "hostile.txt")
    run = trained(folder / "run", cache, *argv, "--epochs", "2")
    load_or_compute_features(run, list(run.members), cache)
    return run


def app(run, cache, page="", **query):
    """A newly opened page."""
    sys.argv[1:] = [str(cache), "cpu", str(run.path)]
    at = AppTest.from_file(str(APP), default_timeout=120)
    query = {name: value if isinstance(value, list) else str(value) for name, value in query.items()}
    at.query_params.update(query)
    if page:
        at.run()
        at.query_params.update(query)
        at.switch_page(f"screens/{page}.py")
    at.run()
    assert not at.exception, at.exception[0].stack_trace
    return at


@pytest.fixture(autouse=True)
def arguments(monkeypatch):
    """Restore the arguments after each test, and `__main__`, which Streamlit replaces and spawned processes import."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


def words(at) -> str:
    return "\n".join(str(element.proto.body) for element in at.get("html"))


def test_the_population_page_has_a_row_for_each_member(run, cache):
    at = app(run, cache)
    table = at.dataframe[0].value
    best, starred = best_of_results(run.members), best_members_of_results(run.members)
    assert set(table["member"]) == set(run.members)
    assert not starred or set(table["member"][table[""] == "★"]) == starred
    assert any(f"★: {BEST}." in caption.value for caption in at.caption) == bool(starred)
    expected = [f"{run.members[name]['metrics']['explained_variance']:.3f}" for name in table["member"]]
    assert [text.partition(" ")[0] for text in table["explained variance"]] == expected
    assert at.selectbox(key="member").options == list(run.members)
    assert at.selectbox(key="member").value == (best or next(iter(run.members)))


def test_features_are_searched(run, cache):
    name = list(run.members)[1]
    at = app(run, cache, "features", member=name)
    assert len(at.dataframe[0].value) == 48 and at.query_params["member"] == name
    of = Features.load(run.path / "analysis" / "features" / f"{name}.npz")
    living = int(of.density_F.argmax())
    for feature, number in ((7, of.promoted_FxT[7, 0]), (living, of.strongest_FxK[living, 0])):
        token = token_texts(load_tokenizer(run.model_location), [number])[0]
        at.text_input[0].set_value(token).run()
        table = at.dataframe[0].value.set_index("feature")
        assert feature in table.index and len(table) < 48
        assert token.strip().casefold() in table["found"][feature]


def test_a_link_to_a_feature_opens_it(run, cache):
    name = list(run.members)[2]
    of = Features.load(run.path / "analysis" / "features" / f"{name}.npz")
    feature = int(of.density_F.argmax())
    at = app(run, cache, "feature", member=name, feature=feature)
    assert at.title[0].value == f"Feature {feature}"
    figures = {metric.label: metric.value for metric in at.metric}
    assert figures["density"] == f"{of.density_F[feature]:.4f}" and figures["maximum"] == f"{of.max_F[feature]:.2f}"
    assert "<script" not in words(at) and "&lt;" in words(at)
    at.number_input(key="feature").set_value(3).run()
    assert at.title[0].value == "Feature 3" and at.query_params["feature"] == "3"


def test_figures_have_no_background_and_only_inks_that_a_dark_theme_replaces(run, cache):
    pages = [app(run, cache), app(run, cache, "feature", feature=3), app(run, cache, "features")]
    pages[2].get("button_group")[0].set_value("Map").run()
    for at in pages:
        assert "light-dark(" in words(at)
        assert at.get("vega_lite_chart")
        for chart in at.get("vega_lite_chart"):
            spec = json.loads(chart.proto.spec)
            assert spec["background"] == "transparent" and spec["width"] == "container"
            inks = re.findall(r'[cC]olor": "(#[0-9a-fA-F]{6})"', json.dumps(spec["config"]))
            assert inks and {ink.upper() for ink in inks} <= INKS.keys()


def test_notes_stay_in_the_run(run, cache):
    name = next(iter(run.members))
    at = app(run, cache, "feature", member=name, feature=4)
    at.toggle[0].set_value(True).run()
    at.text_input(key=f"note {name} 4").set_value("<b>ships</b>").run()
    assert read_notes(run.path, name) == {4: Note(True, "<b>ships</b>")}
    listed = app(run, cache, "features", member=name)
    listed.toggle[0].set_value(True).run()
    assert listed.dataframe[0].value[["feature", "note"]].values.tolist() == [[4, "★ <b>ships</b>"]]
    again = app(run, cache, "feature", member=name, feature=4)
    assert again.toggle[0].value is True
    again.toggle[0].set_value(False).run()
    again.text_input(key=f"note {name} 4").set_value("").run()
    assert read_notes(run.path, name) == {}


def test_a_text_is_tried_on_a_feature(run, cache):
    of = Features.load(run.path / "analysis" / "features" / f"{next(iter(run.members))}.npz")
    at = app(run, cache, "feature", feature=int(of.density_F.argmax()))
    before = words(at)
    at.text_input(key="tried").set_value("The <b>ships</b> lay in the harbour.").run()
    assert not at.exception
    new = re.sub("<[^>]*>", "", words(at).replace(before, ""))
    assert "The &lt;b&gt;ships&lt;/b&gt; lay in the harbour." in new and "largest: " in new


def test_training_and_the_study_are_in_the_browser(run, cache):
    at = app(run, cache, "study")
    assert [header.value for header in at.header][0] == "Training"
    drawn = [block.value for block in at.markdown if block.value.startswith('<figure class="figure">')]
    assert len(drawn) == 3 and all("<svg" in of and "<script" not in of for of in drawn)
    assert any("The study was not run" in caption.value for caption in at.caption)


@pytest.fixture(scope="module")
def images(tmp_path_factory, cache):
    """A run on rows that were imported without a language model: digits, 64 pixels each."""
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "digits.npy", load_digits().data.astype(np.float32))
    assert main.run_as_command(["import-rows", str(folder / "digits.npy"), "--to", str(folder / "rows")]) == 0
    settings = ("--activation", "topk", "--hidden-dim", "48", "--k", "8", "--batch-size", "64", "--block-steps", "4")
    run = trained(folder / "run", cache, "--rows", str(folder / "rows"), *settings)
    load_or_compute_features(run, list(run.members), cache)
    return run


@pytest.mark.parametrize("page", ["", "study", "features", "feature"])
def test_pages_work_without_a_language_model(page, images, cache):
    at = app(images, cache, page)
    assert not at.error and at.title
    if page == "features":
        columns = at.dataframe[0].value.columns
        assert "density" in columns and not {"promotes", "specialized on", "one token"} & set(columns)
    if page == "study":
        assert any("but the rows were imported without one" in caption.value for caption in at.caption)
    if page == "feature":
        assert not {"input score", "one token"} & {metric.label for metric in at.metric}
        assert "row 1" in words(at) and not at.text_input(key=f"note {next(iter(images.members))} 0").value
        assert any("the rows were imported without a language model" in caption.value for caption in at.caption)
        assert not at.button and "tried" not in {box.key for box in at.text_input}


@pytest.mark.parametrize("page", ["text", "concept", "steer"])
def test_pages_that_need_a_language_model_say_so_at_once(page, images, cache):
    at = app(images, cache, page)
    assert "its rows were imported without a language model, which this needs" in at.error[0].value.replace("\\", "")
    assert len(at.error) == 1 and at.title and not at.button


@pytest.mark.parametrize("page", ["feature", "steer"])
@pytest.mark.parametrize("asked", [99, -1])
def test_a_link_to_a_missing_feature_shows_an_error(run, cache, page, asked):
    error = app(run, cache, page, feature=asked).error[0].value
    assert f"{asked}" in error.replace("\\", "") and "0 to 47" in error


def test_a_link_to_a_missing_member_shows_an_error_and_the_best_member(run, cache):
    at = app(run, cache, "features", member="nobody")
    error = at.error[0].value.replace("\\", "")
    assert error.startswith("nobody is not in") and error.endswith(f"; {at.selectbox(key='member').value} is shown")
    assert at.dataframe


def test_a_link_with_a_part_of_an_id_opens_the_member_that_it_means(run, cache):
    for name in run.members:
        part = told_apart(list(run.members))[list(run.members).index(name)]
        at = app(run, cache, "features", member=part)
        assert part != name and at.selectbox(key="member").value == at.query_params["member"] == name and not at.error
    assert "is in several ids" in app(run, cache, "features", member="8").error[0].value


def test_ablation_is_computed_when_asked_for(run, cache):
    of = Features.load(run.path / "analysis" / "features" / f"{next(iter(run.members))}.npz")
    at = app(run, cache, "feature", feature=int(np.abs(of.density_F - 0.2).argmin()))
    assert "tokens" not in {metric.label for metric in at.metric}
    next(button for button in at.button if button.label == "Ablate it").click().run()
    assert not at.exception
    assert int(next(metric.value for metric in at.metric if metric.label == "windows")) > 5


def test_a_typed_text_is_coloured_by_what_fires(run, cache):
    at = app(run, cache, "text")
    at.text_area(key="typed").set_value("The <b>ships</b> lay in the harbour.").run()
    assert not at.exception and len(at.dataframe[0].value) > 5
    assert "rgba(" in words(at)
    assert "The &lt;b&gt;ships&lt;/b&gt; lay in the harbour." in re.sub("<[^>]*>", "", words(at))


def test_a_concept_is_found(run, cache):
    at = app(run, cache, "concept")
    at.text_input[0].set_value("moon")
    at.button[0].click().run()
    assert not at.exception
    assert not at.error, at.error[0].value
    table = at.dataframe[0].value
    assert set(table.columns) >= {"feature", "AUROC", "w/o", "q", "passes"} and "member" not in table
    only = table["passes"] & (table["w/o"] - 0.5 <= 0.25 * (table["AUROC"] - 0.5))
    assert (table["needs"] == np.where(only, "phrase", "")).all()
    assert any("by the phrase's own tokens" in caption.value for caption in at.caption) == only.any()


def test_a_link_to_a_concept_searches_it(run, cache):
    at = app(run, cache, "concept", phrase="moon", everywhere="true", examples="A moon.\nThe full moon.")
    assert at.text_input(key="phrase").value == "moon" and not at.error
    assert any("2 of them your examples" in caption.value.replace("\\", "") for caption in at.caption)
    assert set(at.dataframe[0].value["member"]) == set(run.members)


def test_a_link_to_a_search_finds_the_same_features(run, cache):
    name = next(iter(run.members))
    density_F = Features.load(run.path / "analysis" / "features" / f"{name}.npz").density_F
    query = {"density": ["0.1", "1"], "order": "most frequent", "specialization": "0"}
    shown = app(run, cache, "features", member=name, **query).dataframe[0].value
    assert 0 < len(shown) < 48 and (np.diff(density_F[shown["feature"]]) <= 0).all()
    assert (density_F[shown["feature"]] >= 0.1).all()
    assert not app(run, cache, "features", member=name, view="Map").dataframe


def test_a_link_to_a_text_opens_the_token_and_the_colour(run, cache):
    at = app(run, cache, "text", typed="The ships lay in the harbour.", token=2)
    strongest, other = at.dataframe[0].value["feature"][:2]
    assert at.query_params["token"] == "2" and at.query_params["colour"] == str(strongest)
    again = app(run, cache, "text", typed="The ships lay in the harbour.", token=2, colour=other)
    (colour,) = (box for box in again.selectbox if box.label == "Colour by feature")
    assert colour.value == other and again.dataframe[0].value["feature"][0] == strongest
    again.text_area(key="typed").set_value("The sea was calm.").run()
    assert "token" not in again.query_params, "a token of the text before"


def test_a_link_to_a_steered_text_writes_it_again(run, cache):
    at = app(run, cache, "steer", feature=5)
    assert not at.subheader, "nothing is written before it is asked for"
    at.number_input(key="feature").set_value(3)
    at.button[0].click().run()
    assert "feature 3" in at.subheader[1].value and at.query_params["feature"] == "3"
    again = app(run, cache, "steer", feature=3, written=at.query_params["written"], strength=2, samples=1)
    assert "feature 3\\, add 2" in again.subheader[1].value


def test_steering_shows_before_and_after(run, cache):
    of = Features.load(run.path / "analysis" / "features" / f"{next(iter(run.members))}.npz")
    at = app(run, cache, "steer", feature=int(of.density_F.argmax()))
    at.button[0].click().run()
    assert not at.exception
    texts = [element for element in at.get("html") if "<style>" not in element.proto.body]
    before, after = (re.sub("<[^>]*>", "", element.proto.body) for element in texts)
    assert before != after
    assert all(text.count("I went for a walk and") == 3 for text in (before, after)), "three samples"
    assert [heading.value for heading in at.subheader][0] == "As it is"
    assert [metric.label for metric in at.metric] == ["its tokens", "perplexity"] * 2


def test_the_steering_page_starts_with_the_last_viewed_feature(run, cache):
    at = app(run, cache, "feature", feature=5)
    at.query_params.clear()  # as a click in the menu does
    at.switch_page("screens/steer.py").run()
    assert at.number_input(key="feature").value == 5 and at.query_params["feature"] == "5"


@pytest.mark.parametrize("page, damaged", [("features", "analysis/features"), ("feature", "snapshots/000000000")])
def test_a_damaged_file_is_named_on_the_page(page, damaged, run, cache, tmp_path):
    copy, name = shutil.copytree(run.path, tmp_path / "run"), next(iter(run.members))
    path = copy / damaged / f"{name}.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{name}.npz is damaged" in app(FinishedRun.open(copy), cache, page, member=name).error[0].value.replace(
        "\\", ""
    )


def test_members_that_failed_are_named(run, cache, tmp_path, capsys):
    copy = shutil.copytree(run.path, tmp_path / "run")
    results = read_json(copy / "results.json", "")
    failed = {"failed": {"step": 7, "reason": "its loss is not finite"}, "metrics": None}
    results["members"][1] |= failed
    write_json(copy / "results.json", results)
    at = app(FinishedRun.open(copy), cache)
    assert len(at.dataframe[0].value) == 2 and "stopped at step 7" in at.error[0].value
    results["members"] = [member | failed for member in results["members"]]
    write_json(copy / "results.json", results)
    (all_failed := copy.rename(tmp_path / "all")).touch()  # a new path, since open runs are cached by path
    assert "all its members failed" in app(FinishedRun.open(all_failed), cache).error[0].value
    show([str(all_failed), "--pareto"])
    assert "all members failed" in capsys.readouterr().out


def test_a_mistyped_run_is_refused_with_the_nearest_name(run, cache, capsys):
    assert main.run_as_command(["dashboard", str(run.path), f"{run.path}n", "--cache-dir", str(cache)]) == 2
    assert f"{run.path}n: there is no such run directory: did you mean {run.path}?" in capsys.readouterr().err


def test_the_server_answers_only_for_loopback_names(run, cache):
    """Otherwise a website could read everything by DNS rebinding, with a host name that points to this address."""
    with serving(cache, run.path) as (address, _):
        port = int(address.rpartition(":")[2])

        def answer(host: str) -> str:
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
            upgrade = f"Connection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\nOrigin: http://{host}:{port}"
            with socket.create_connection(("127.0.0.1", port), timeout=20) as asked:
                asked.sendall(f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\n{upgrade}\r\n\r\n".encode())
                return asked.recv(64).decode().split()[1]

        assert answer("evil.test") == "403"
        assert answer("127.0.0.1") == answer("localhost") == "101"


def test_tokens_are_escaped():
    for made in (passage(coloured([HOSTILE], [1.0], 1.0), HOSTILE), bars([(HOSTILE, 1.0)])):
        assert "<script" not in made and "<img" not in made and "&lt;script&gt;" in made


def test_a_used_port_is_reported(run, cache, capsys):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main.run_as_command(["dashboard", str(run.path), "--port", str(port)]) == 2
    assert "give another --port" in capsys.readouterr().err


def test_missing_requirements_are_reported(run, cache):
    hidden = "import sys; sys.modules['streamlit'] = None; import importlib.util as u; f = u.find_spec\n"
    hidden += "import analysis.cli.dashboard as d; d.find_spec = lambda n: None if n == 'streamlit' else f(n)\n"
    hidden += "import main; sys.exit(main.run_as_command(sys.argv[1:]))"
    done = typed("dashboard", run.path, "--port", free_port(), cache=cache, script=hidden)
    assert done.returncode == 2 and "pip install 'sae-jax[dashboard]'" in done.stderr


def click_a_point(chart) -> None:
    """Click the middle of a coloured point of a map, above its legend."""
    pixels_HxWx3 = matplotlib.image.imread(io.BytesIO(chart.screenshot()))[:300, :, :3]
    spots_HxW = binary_erosion(np.ptp(pixels_HxWx3, axis=-1) > 0.2, iterations=2)
    y, x = np.argwhere(spots_HxW)[0].tolist()
    chart.click(position={"x": x, "y": y})


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_all_pages_open_by_clicks(run, cache, width):
    pytest.importorskip("playwright")
    name = list(run.members)[1]
    of = Features.load(run.path / "analysis" / "features" / f"{name}.npz")
    feature = int(of.density_F.argmax())
    dark = {"color_scheme": "dark"}
    with serving(cache, run.path) as (address, _), visiting(address, width, **dark) as visitor:
        page = visitor.page
        visitor.open("/", "Population")
        chart = page.locator("[data-testid=stVegaLiteChart] svg.marks")
        chart.wait_for()
        assert chart.bounding_box()["width"] <= width
        label = chart.locator(".role-axis-label text").first
        assert label.evaluate("of => getComputedStyle(of).fill") == "rgb(232, 234, 237)", "the ink of a dark theme"
        visitor.turn_to("Training and study", "Training and study")
        page.locator("figure svg:visible").first.wait_for()
        assert all(of.bounding_box()["width"] <= width for of in page.locator("figure svg:visible").all())
        visitor.turn_to("Features", "Features")
        page.get_by_role("textbox", name="Search").fill("s")
        page.keyboard.press("Enter")
        page.get_by_text("Map", exact=True).click()
        page.get_by_text("Decoder directions").wait_for()
        visitor.settled()
        page.wait_for_timeout(1000)  # until the chart is drawn
        assert "search=s" in page.url and "view=Map" in page.url
        click_a_point(page.get_by_test_id("stVegaLiteChart"))
        page.wait_for_url("**/feature?*")
        assert "search" not in page.url
        visitor.turn_to("Features", "Features")
        page.get_by_text("Decoder directions").wait_for()
        assert page.get_by_role("textbox", name="Search").input_value() == "s" and "search=s" in page.url
        visitor.open(f"/feature?member={name}&feature={feature}", f"Feature {feature}")
        assert page.get_by_role("heading", name="Where it fires").is_visible()
        page.get_by_role("button", name="Ablate it").click()
        page.get_by_text("becomes likelier without it").wait_for(timeout=120_000)
        visitor.turn_to("Type text", "Type text")
        page.get_by_role("textbox", name="Text").fill("The ships <img src=x onerror=window.ran=1> lay in the harbour.")
        page.get_by_role("button", name="Read it").click()
        page.get_by_text("features fire", exact=False).last.wait_for(timeout=120_000)
        visitor.settled()
        visitor.turn_to("Find a concept", "Find a concept")
        page.get_by_role("textbox", name="Word or phrase").fill("moon")
        page.get_by_role("button", name="Find").click()
        page.get_by_text("false discovery rate").wait_for(timeout=120_000)
        visitor.settled()
        link = page.url.removeprefix(address)
        visitor.turn_to("Type text", "Type text")
        page.get_by_text("features fire", exact=False).last.wait_for(timeout=120_000)
        assert "typed=The" in page.url and "phrase" not in page.url, "the address has what this page shows"
        visitor.open(link, "Find a concept")
        page.get_by_text("false discovery rate").wait_for(timeout=120_000)
        assert page.get_by_role("textbox", name="Word or phrase").input_value() == "moon"
        visitor.turn_to("Steer", "Steer")
        page.get_by_role("button", name="Write").click()
        page.get_by_role("heading", name="As it is").wait_for(timeout=120_000)
        visitor.settled()
        assert page.evaluate("window.ran") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert (visitor.outside, visitor.errors, visitor.dialogs) == ([], [], [])


LOUD = "![x](http://evil.test/b.png) :red[x] <img src=http://evil.test/c.png> https://evil.test"


@pytest.mark.parametrize("query", ["run", "member", "feature"])
def test_the_address_is_shown_as_text(run, cache, query):
    """Otherwise a link to the dashboard could make the browser load a picture from another server."""
    at = app(run, cache, "feature")
    at.query_params[query] = LOUD
    said = next(error.value for error in at.run().error if "evil" in error.value)
    assert not set(re.sub(r"\\[!-/:-@[-`{-~]", "", said)) & set(string.punctuation)  # all punctuation is escaped


def test_a_too_long_number_is_no_feature(run, cache):
    assert app(run, cache, "feature", feature="9" * 5000).error


def test_allowed_host_names_if_other_machines_may_connect():
    """If any host name was accepted, a website could use DNS rebinding."""
    at_all = hosts("0.0.0.0", ())
    assert "*" not in at_all and {"127.0.0.1", "0.0.0.0", socket.gethostname()} <= set(at_all)
    assert hosts(ADDRESS, ()) == LOOPBACK and "proxy.test" in hosts(ADDRESS, ("proxy.test",))


def test_an_address_that_is_not_set_is_refused(run, capsys):
    assert main.run_as_command(["dashboard", str(run.path), "--address", ""]) == 2
    assert "--address: an empty text" in capsys.readouterr().err
