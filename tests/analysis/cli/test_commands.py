"""What holds for all commands: typos are answered, printed ids can be pasted, `--json -` is JSON, Tab completes."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from command_line import BUNDLED, ROOT, THREE_KINDS, environment, shared_cache, trained
from finished_runs import finished_run
from rows import make_store
from tokenizers import Tokenizer

import main
from analysis.runs.finished import FinishedRun
from analysis.ui.terminal.screen import Screen
from analysis.ui.terminal.wording import program
from harvest.errors import InputError
from harvest.flags import ELSEWHERE, named
from harvest.sources import BUNDLED_MODEL
from sae_jax.config import TrainConfig
from sae_jax.run_directory import default_path, run_of

PLACES = {"runs": [], "train": [], "find-feature": ["RUN", "PHRASE"]}  # positional arguments; RUN for the others
HEAVY = ("torch", "jax", "transformers", "datasets", "orbax", "wandb", "altair", "streamlit")


def places(command: str) -> list[str]:
    return PLACES.get(command, ["RUN"])


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as done:
        main.main([command, "--help"])
    assert done.value.code == 0
    return capsys.readouterr().out


def with_doubled_letter(word: str, at: int) -> str:
    return word[:at] + word[at - 1] + word[at:]


def test_the_overview_names_every_command_with_what_it_does(capsys):
    assert main.run_as_command(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for command in main.COMMANDS:
        (line,) = (line for line in lines if re.match(rf"  {command} +\w", line))
        assert line.endswith(".") and len(line) <= 80
    assert {"train:", "look:", "measure:", "find and steer:", "publish:"} <= set(lines)
    assert main.run_as_command(["--version"]) == 0
    assert re.fullmatch(r"sae-jax \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("command", main.COMMANDS)
def test_a_mistyped_command_is_answered_with_the_nearest(command):
    for typo in (with_doubled_letter(command, 2), command[:-1], command.title()):
        with pytest.raises(InputError, match=f"^{typo}: there is no such command: did you mean {command}\\? "):
            main.main([typo, "RUN"])


@pytest.mark.parametrize("command", main.COMMANDS)
def test_a_mistyped_flag_is_answered_with_the_nearest(command, capsys):
    flags = set(re.findall(r"^  (--[a-z][a-z0-9-]*)", help_of(command, capsys), re.M))
    assert flags
    for flag in flags:
        typo = with_doubled_letter(flag, 3)
        with pytest.raises(InputError, match=f"^{typo}: there is no such flag: did you mean {flag}\\? "):
            main.main([command, *places(command), typo, "1"])


def test_names_of_settings_in_other_tools_are_answered_with_ours():
    for other, ours in ELSEWHERE.items():
        command = ["steer", "RUN"] if ours == "strength" else ["train"]
        with pytest.raises(
            InputError, match=f"there is no such flag: did you mean {named(ours)}(\\?| \\(a number of )"
        ):
            main.main([*command, named(other), "1"])
    with pytest.raises(InputError, match="^--d_sae: there is no such flag: did you mean --hidden-dim"):
        main.main(["--d_sae", "1024"])


@pytest.mark.parametrize("command", main.COMMANDS)
def test_the_same_things_have_the_same_names(command, capsys):
    flags = set(re.findall(r"^  (--[a-z][a-z0-9-]*)", help_of(command, capsys), re.M))
    assert "--json" in flags or command in ("dashboard", "report", "export")
    assert "--quiet" in flags or command == "dashboard"
    assert "--cache-dir" in flags or command in ("runs", "show", "frontier", "import-rows")
    assert not flags & {"--output", "--out", "--output-dir", "--members-of", "--cache", "--top-k"}


def test_commands_are_printed_as_the_user_types_them(monkeypatch):
    for started, typed in {
        "/usr/local/bin/sae-jax": "sae-jax",
        "/site-packages/sae_jax/__main__.py": "python -m sae_jax",
        "/site-packages/pytest/__main__.py": "python main.py",
        "main.py": "python main.py",
        "../my clone/main.py": "python '../my clone/main.py'",
        "-c": "python main.py",
    }.items():
        monkeypatch.setattr(sys, "argv", [started])
        assert program() == typed


def test_the_words_that_attribute_suggests_are_one_token_of_the_bundled_model():
    tokenizer = Tokenizer.from_file(str(BUNDLED_MODEL / "tokenizer.json"))
    source = (ROOT / "analysis" / "cli" / "attribute.py").read_text()
    words = set(re.findall(r"--(?:target|against) [\"']( \w+)[\"']", source))
    assert len(words) == 2 and all(len(tokenizer.encode(word, add_special_tokens=False)) == 1 for word in words)


# Ids.


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """A run of 24 members without training."""
    path = tmp_path_factory.mktemp("population")
    config = TrainConfig(activation=("relu", "topk"), k=(4, 8), target_l0=(4, 8), lr=(1e-3, 3e-4), seed=(0, 1, 2))
    return finished_run(path / "run", config, [make_store(path / "store", windows=20)])


@pytest.mark.parametrize("columns", [40, 60, 80, 160])
def test_each_id_of_the_box_of_results_can_be_pasted(population, columns):
    stream = io.StringIO()
    console = Screen(stream, redraws=False)
    console.print(console.results_table(population.results["members"], columns))
    lines = [line for line in stream.getvalue().splitlines()[1:] if re.search(r"  \d", line)]
    printed = [line.split("  ")[0] for line in lines]
    assert len(set(printed)) == len(printed) == 24, "no two members look the same"
    for text, name in zip(printed, population.members, strict=True):
        assert population.only(text) == name


def test_a_run_is_named_after_its_layers_and_members(population, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {"harvest": {"model_name": "bundled", "layer": [0, 2]}, "train": TrainConfig().to_json()}
    new = default_path(asked)
    assert re.fullmatch(r"runs/relu-bundled-layer0-2-[0-9a-f]{8}", str(new))
    asked["train"]["members"] = [{"activation": "topk"}, {"activation": "topk", "k": 3}, {"activation": "gated"}]
    assert re.fullmatch(r"runs/topk-gated-bundled-layer0-2-[0-9a-f]{8}", str(default_path(asked)))
    earlier = Path(f"runs/relu-bundled-l0-2-{default_path(asked).name[-8:]}")
    earlier.mkdir(parents=True)
    assert default_path(asked) == earlier, "the directory of a run of an earlier version is found"
    assert run_of(Path("/saes")) is run_of(Path("/")) is None


# JSON.


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "three"
    trained(path, cache, *THREE_KINDS, "--epochs", "2")
    return path


def piped(capsys, *argv: object) -> dict:
    """What a JSON reader gets from `COMMAND ... --json -`."""
    assert main.run_as_command([*map(str, argv), "--json", "-"]) == 0
    out = capsys.readouterr().out
    return json.loads(out, parse_constant=pytest.fail)


def test_json_of_what_was_trained(run, cache, capsys, monkeypatch):
    for name, value in environment(cache).items():
        monkeypatch.setenv(name, value)
    always = ("--ce-windows", "0", "--run-dir", run, "--cache-dir", cache)
    results = piped(capsys, "train", *THREE_KINDS, "--epochs", "2", *always)
    assert [member["id"] for member in results["members"]] == list(FinishedRun.open(run).members)
    assert results["held_out"]["rows"] == results["held_out"]["windows"] * 9 and results["dataset"]["name"]
    plan = piped(capsys, "train", *THREE_KINDS, "--dry-run", "--cache-dir", cache)
    assert len(plan["members"]) == 3 and plan["steps"] > 0
    (record,) = piped(capsys, "runs", run.parent)["runs"]
    assert (record["name"], record["state"], record["members"]) == ("three", "finished", 3)
    assert record["explained_variance"] == max(m["metrics"]["explained_variance"] for m in results["members"])
    assert len(piped(capsys, "frontier", run)["points"]) == 3
    assert piped(capsys, "show", run) == results
    assert main.run_as_command(["runs", str(run.parent)]) == 0
    assert re.search(r"three +finished +\d{4}-\d\d-\d\d \d\d:\d\d +3 +0\.\d{3}", capsys.readouterr().out)


QUICK = ("--documents", "1200", "--document-tokens", "20")
JSON = {
    "evaluate": (("--ce-windows", "8"), "dictionaries"),
    "saebench": ((*QUICK, "--metrics", "probing", "--label", "form", "--k", "1"), "benchmarks"),
    "study": (("--documents", "1200"), "answers"),
    "find-feature": (("the sea",), "features"),
    "steer": (("--member", "topk", "--feature", "3", "--max-new-tokens", "4", "--samples", "1"), "directions"),
    "attribute": (("--member", "best", "--prompt", "The ships lay in the", "--target", " sea"), "effects"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", JSON)
def test_json_of_every_command_that_computes(command, run, cache, capsys):
    argv, key = JSON[command]
    record = piped(capsys, command, run, *argv, "--cache-dir", cache)
    assert record[key]


@pytest.mark.slow
def test_saebench_keeps_the_results_of_other_members(run, cache, capsys):
    settings = (*JSON["saebench"][0], "--cache-dir", cache)
    first, second, _ = FinishedRun.open(run).members
    path = run / "analysis" / "sparse_probing.json"
    path.unlink(missing_ok=True)
    for member in (first, second):
        piped(capsys, "saebench", run, *settings, "--member", member)
    assert {first, second} <= json.loads(path.read_text())["members"].keys()
    piped(capsys, "saebench", run, *settings, "--member", second, "--seed", "1")
    assert first not in json.loads(path.read_text())["members"], "results with another seed are not mixed"


# Completion.


def completions(line: str, tmp_path: Path) -> list[str]:
    """What the shell offers at the end of a line; the program must load nothing heavy for it."""
    script = f"""
import os, sys
def leave(code):
    print([name for name in {HEAVY} if name in sys.modules])
    sys.stdout.flush()
    quit(code)
quit, os._exit = os._exit, leave
from sae_jax.__main__ import run
run()"""
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"), "_ARGCOMPLETE_IFS": "\n", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | asked, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    return [word.strip() for word in (tmp_path / "out").read_text().split("\n")]


def test_commands_flags_values_and_members_are_completed(tmp_path, population):
    assert completions("sae-jax st", tmp_path) == ["study", "steer"]
    assert completions("sae-jax --activation ju", tmp_path) == ["jump_relu"]
    assert completions("sae-jax train --activation relu topk --hid", tmp_path) == ["--hidden-dim"]
    assert completions("sae-jax steer RUN --mod", tmp_path) == ["--mode"]
    line = f"sae-jax export {population.path} --member topk-f256-k4-lr3e-4-"
    assert completions(line, tmp_path) == [f"topk-f256-k4-lr3e-4-s{seed}" for seed in range(3)]


# The installed package.


@pytest.mark.slow
def test_the_wheel_works_in_a_folder_with_files_of_the_same_names(tmp_path, cache):
    """The environment has our dependencies, but not our clone, and the folder has an analysis.py and a main.py."""
    source, env, home = tmp_path / "source", tmp_path / "env", tmp_path / "home"
    for name in ("harvest", "sae_jax", "analysis"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    quiet = {"check": True, "capture_output": True, "text": True}
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], **quiet)
    (wheel,) = tmp_path.glob("sae_jax-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], **quiet)
    subprocess.run([*pip, "--python", env / "bin" / "python", "install", "--no-deps", wheel], **quiet)
    (site,) = env.glob("lib/*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    home.mkdir()
    for name in ("main", "analysis", "harvest", "datasets"):
        (home / f"{name}.py").write_text("raise SystemExit('the file of the user was imported')")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment(cache)

    def ran(*command: object) -> str:
        done = subprocess.run([*map(str, command)], cwd=home, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    sae_jax, module = env / "bin" / "sae-jax", (env / "bin" / "python", "-m", "sae_jax")
    assert ran(sae_jax, "--help").startswith("usage: sae-jax [COMMAND]")
    assert ran(*module, "--help").startswith("usage: python -m sae_jax [COMMAND]")
    assert ran(sae_jax, "--version") == ran(*module, "--version")
    tiny = ("--n-samples", 100, "--seq-len", 10, "--epochs", 1, "--hidden-dim", 48, "--target-l0", 8)
    out = ran(sae_jax, *BUNDLED, *tiny, "--cache-dir", cache)
    assert "EXPERIMENT RESULTS" in out and str(site / "harvest" / "bundled" / "model") in out.replace("\n", "")
    (next_command,) = re.findall(r"^next: (sae-jax study runs/\S+)$", out, re.M)
    assert ran(*module, "show", next_command.split()[-1]).count("EXPERIMENT RESULTS") == 1
