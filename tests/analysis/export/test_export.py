"""`python main.py export`: members and other dictionaries as SAELens' files, on disk and on a local model hub."""

import base64
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
import yaml
from command_line import ROOT
from finished_runs import finished_run
from hub_server import serving
from populations import SITES
from rows import make_store

from analysis.cli.export import run as export
from analysis.export.model_card import member_facts, model_card
from harvest.errors import InputError
from harvest.files import read_json, write_arrays, write_json
from sae_jax.config import TrainConfig
from sae_jax.formats import load_dictionary, save_dictionary
from sae_jax.formats.trained import trained_dictionary
from sae_jax.members import members_of

METRICS = {"explained_variance": 0.8125, "mse": 1.5, "l0": 3.0, "l1": 2.0, "cosine": 0.9, "dead_fraction": 0.25}
MANIFEST = {"model": {"location": "gpt2"}, "dataset": {"location": "org/text"}}
MANIFEST |= {"hook_name": "blocks.0.hook_resid_pre", "seq_len": 20}


@pytest.fixture
def run_directory(tmp_path):
    """The files of a finished run with two members, of which the second failed."""
    config = TrainConfig(("topk", "relu"), 8, k=3, target_l0=3.0, epochs=2)
    path = finished_run(tmp_path / "run", config, [make_store(tmp_path / "store")]).path
    first, second = members_of(config, SITES)
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (4, 8), "b_enc": 8, "W_dec": (8, 4), "b_dec": 4}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_dictionary(trained_dictionary(first, tensors, MANIFEST), path / "members" / first.id)
    write_arrays(path / "members" / first.id / "stats.npz", {"density": np.linspace(0, 1, 8)})
    record = read_json(path / "config.json", "")
    for name in ("model", "dataset"):
        record["stores"][0][name] |= {"asked": MANIFEST[name]["location"], **MANIFEST[name]}
    record["stores"][0] |= {"rows": 17100, "hook_name": MANIFEST["hook_name"]}
    write_json(path / "config.json", record)
    results = read_json(path / "results.json", "")
    results["members"][0] |= {"metrics": METRICS}
    results["members"][1] |= {"metrics": None, "failed": {"step": 7, "reason": "lost"}}
    write_json(path / "results.json", results)
    return path


def ids(run_directory) -> list[str]:
    return [m["id"] for m in json.loads((run_directory / "results.json").read_text())["members"]]


def test_a_member_is_exported_with_its_densities_and_a_card(run_directory, tmp_path):
    member, to = ids(run_directory)[0], tmp_path / "out"
    export([str(run_directory), "--member", member, "--to", str(to)])
    files = {"cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "README.md"}
    assert {path.name for path in to.iterdir()} == files
    written = (run_directory / "members" / member / "sae_weights.safetensors").read_bytes()
    assert (to / "sae_weights.safetensors").read_bytes() == written
    expected = np.log10(np.linspace(0, 1, 8) + 1e-10)
    np.testing.assert_allclose(load_dictionary(to).log_sparsity_F, expected, rtol=1e-6)
    _, front, text = (to / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "saelens" and yaml.safe_load(front)["base_model"] == "gpt2"
    for said in (f"# {member}", "8 features", "17,100 rows", "| k | 3 |", "0.8125", 'SAE.load_from_disk(".")'):
        assert said in text

    export([str(run_directory), "--to", str(tmp_path / "only")])  # the other member failed
    assert (tmp_path / "only" / "README.md").read_bytes() == (to / "README.md").read_bytes()
    export([str(to), "--to", str(tmp_path / "again")])  # the directory of a single dictionary
    for name in files - {"README.md"}:
        assert (tmp_path / "again" / name).read_bytes() == (to / name).read_bytes()


def test_the_card_says_what_the_bundled_model_and_text_are(run_directory):
    member = ids(run_directory)[0]
    dictionary = load_dictionary(run_directory / "members" / member)
    metadata = dictionary.cfg["metadata"] | {"model_name": "bundled", "dataset_path": "bundled"}
    bundled = replace(dictionary, cfg=dictionary.cfg | {"metadata": metadata})
    text = model_card(bundled, member_facts(run_directory, member), None)
    assert "of the bundled model, the small GPT-2 that ships with sae-jax." in text
    assert "on the bundled text, the corpus that ships with sae-jax: 17,100 rows" in text


def test_invalid_exports_are_refused_and_nothing_is_written(run_directory, tmp_path):
    member, failed = ids(run_directory)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    cases = {
        (): "--to is missing: give a new or empty directory",
        ("--to", "out", "--member", "no"): "--member no is not in",
        ("--to", "out", "--member", failed): "failed at step 7",
        ("--to", "full", "--member", member): "already exists",
    }
    for argv, reason in cases.items():
        argv = [str(tmp_path / a) if a in ("out", "full") else a for a in argv]
        with pytest.raises(InputError, match=reason):
            export([str(run_directory), *argv])
    with pytest.raises(InputError, match="is a single dictionary, not a run: leave --member out"):
        export([str(run_directory / "members" / member), "--member", member, "--to", str(tmp_path / "out")])
    (run_directory / "results.json").unlink()
    with pytest.raises(InputError, match="is not finished: its training command with --resume finishes it"):
        export([str(run_directory), "--to", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@contextmanager
def accepting_hub(repository: dict[str, bytes], token: str):
    """A hub on this machine that accepts the uploads of the real client if they carry the token."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if self.headers["Authorization"] != f"Bearer {token}":
                return self.answer(401, {"error": "Invalid username or password."})
            if self.path.endswith("/whoami-v2"):
                return self.answer(200, {"name": "me", "type": "user", "auth": {"type": "access_token"}})
            return self.answer(200 if self.path.rsplit("/main/", 1)[-1] in repository else 404, {})

        do_HEAD = do_GET

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            url = f"http://{self.headers['Host']}/me/saes"
            if self.path.endswith("/preupload/main"):
                files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
                return self.answer(200, {"files": [f | {"shouldIgnore": False} for f in files]})
            if "/commit/main" in self.path:
                for value in (line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"):
                    repository[value["path"]] = base64.b64decode(value["content"])
                return self.answer(200, {"commitUrl": f"{url}/commit/1", "commitOid": "1", "success": True})
            return self.answer(200, {"url": url, "id": "me/saes", "name": "me/saes"})

        def answer(self, status, record):
            body = json.dumps(record).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "1")
            self.send_header("ETag", "1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with serving(Handler) as endpoint:
        yield endpoint


def typed(*argv: object, **environment: str) -> subprocess.CompletedProcess:
    """`python main.py export ARGV --push-to-hub me/saes`, with the hub's address in the environment."""
    command = [sys.executable, ROOT / "main.py", "export", *map(str, argv), "--push-to-hub", "me/saes"]
    bare = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    return subprocess.run(command, env=bare | environment, capture_output=True, text=True, timeout=120)


def test_an_export_is_uploaded_into_a_folder_of_its_name(run_directory, tmp_path):
    member, repository = ids(run_directory)[0], {}
    argv = (run_directory, "--member", member, "--to")
    home = {"HF_HOME": str(tmp_path / "home")}
    with accepting_hub(repository, "secret") as endpoint:
        done = typed(*argv, tmp_path / "out", HF_ENDPOINT=endpoint, HF_TOKEN="secret", **home)
        assert (done.returncode, done.stderr) == (0, "")
        assert f'SAE.from_pretrained("me/saes", "{member}")' in repository["README.md"].decode()
        for path in (tmp_path / "out").iterdir():
            assert repository[f"{member}/{path.name}"] == path.read_bytes()
        refused = typed(*argv, tmp_path / "out2", HF_ENDPOINT=endpoint, HF_TOKEN="another", **home)
        assert refused.returncode == 2 and "rejects the login" in refused.stderr
        no_login = typed(*argv, tmp_path / "out2", HF_ENDPOINT=endpoint, **home)
        assert no_login.returncode == 2 and "you are not logged in to the hub" in no_login.stderr
    gone = typed(*argv, tmp_path / "out2", HF_ENDPOINT=endpoint, HF_TOKEN="secret", **home)
    assert gone.returncode == 2 and "cannot be reached" in gone.stderr
    assert not (tmp_path / "out2").exists()
