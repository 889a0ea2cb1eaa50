"""Loss recovered after training, and `python main.py evaluate` for runs, single dictionaries, other texts and hooks."""

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from command_line import BUNDLED, environment, shared_cache
from foreign import without_checksums
from safetensors.numpy import save_file

import main
from analysis.quality import loss_recovered
from analysis.quality.opened import dictionaries_in
from analysis.stats import FEWEST_DOCUMENTS
from harvest.errors import InputError
from harvest.files import read_json, write_json
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL, same_name
from harvest.text.documents import documents

ARGV = (*BUNDLED, "--n-samples", "100", "--seq-len", "10", "--epochs", "3", "--activation", "relu", "topk")
ARGV += ("--layer", "1", "--hook", "resid_pre", "mlp_out", "--hidden-dim", "48", "--target-l0", "8", "--k", "8")
CE = ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "ce_recovered", "kl_recovered")
D = 256


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return shared_cache(tmp_path_factory)


@pytest.fixture(autouse=True)
def for_this_process(monkeypatch, cache):
    for name, value in environment(cache).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(cache).items():
            patch.setenv(name, value)
        assert main.run_as_command([*ARGV, "--run-dir", str(run), "--cache-dir", str(cache)]) == 0
    return run


def evaluated(tmp_path, cache, *argv: object) -> dict[str, dict]:
    """The report of `main.py evaluate`, by the dictionaries' names."""
    path = tmp_path / "report.json"
    assert main.run_as_command(["evaluate", *map(str, argv), "--json", str(path), "--cache-dir", str(cache)]) == 0
    return {found["name"]: found for found in json.loads(path.read_text())["dictionaries"]}


def write_dictionary(directory: Path, W_enc_DxF, W_dec_FxD, b_dec_D, **metadata) -> Path:
    """Write a standard SAE in SAELens' format without the code under test."""
    directory.mkdir()
    d, f = W_enc_DxF.shape
    tensors = {"W_enc": W_enc_DxF, "W_dec": W_dec_FxD, "b_enc": np.zeros(f), "b_dec": b_dec_D}
    save_file(
        {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, directory / "sae_weights.safetensors"
    )
    cfg = {"architecture": "standard", "d_in": d, "d_sae": f, "dtype": "float32", "device": "cpu"}
    cfg |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    metadata = {"sae_lens_version": "6.54.12", "model_name": "bundled", "context_size": 16, **metadata}
    (directory / "cfg.json").write_text(json.dumps({**cfg, "metadata": metadata}))
    return directory


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> dict[str, Path]:
    """Dictionaries whose reconstruction is zero, the input, and a constant."""
    folder, zeros_DxF = tmp_path_factory.mktemp("known"), np.zeros((D, 8))
    both_DxF = np.concatenate([np.eye(D), -np.eye(D)], 1)
    at = {"hook_name": "blocks.2.hook_resid_mid"}
    return {
        "zero": write_dictionary(folder / "zero", zeros_DxF, zeros_DxF.T, np.zeros(D), **at),
        "identity": write_dictionary(folder / "identity", both_DxF, both_DxF.T, np.zeros(D), **at),
        "same": write_dictionary(folder / "same", zeros_DxF, zeros_DxF.T, np.linspace(-1, 1, D), **at),
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    some = islice(documents(str(BUNDLED_CORPUS)), 60)  # a text that the model predicts
    path.write_text("\n\n".join(" ".join(document.split()[:60]) for document in some))
    return path


def test_a_run_has_its_loss_recovered_in_results_and_box(finished, cache, capsys):
    results = read_json(finished / "results.json", "")
    assert {m["hook"] for m in results["members"]} == {"resid_pre", "mlp_out"} and len(results["members"]) == 4
    for member in results["members"]:
        metrics = member["metrics"]
        assert metrics["ce_clean"] == pytest.approx(results["members"][0]["metrics"]["ce_clean"], rel=1e-5)
        assert metrics["ce_clean"] < metrics["ce_sae"] < metrics["ce_zero"] and metrics["kl_recovered"] < 1
        share = (metrics["ce_zero"] - metrics["ce_sae"]) / (metrics["ce_zero"] - metrics["ce_clean"])
        assert metrics["ce_recovered"] == pytest.approx(share)
        assert set(member["intervals"].values()) == {None}  # there are too few documents
        assert results["loss_recovered"]["documents"] < FEWEST_DOCUMENTS
    assert results["loss_recovered"]["windows_asked"] == 256
    assert 0 < results["loss_recovered"]["documents"] <= results["loss_recovered"]["windows"] <= 10
    assert main.run_as_command([*ARGV, "--run-dir", str(finished), "--cache-dir", str(cache)]) == 0
    box = capsys.readouterr().out
    assert "is finished" in box and "CE rec." in box
    assert f"{results['members'][0]['metrics']['ce_recovered']:.3f}" in box


def test_a_run_that_is_stopped_while_its_loss_recovered_is_measured_is_resumed(
    finished, tmp_path, cache, monkeypatch, capsys
):
    def stopped(*_):
        raise KeyboardInterrupt

    argv = [*ARGV, "--run-dir", str(tmp_path / "run"), "--cache-dir", str(cache)]
    with monkeypatch.context() as patch:
        patch.setattr(loss_recovered, "loss_recovered", stopped)
        assert main.run_as_command(argv) == 130
    assert not (tmp_path / "run" / "results.json").exists()
    assert main.run_as_command(argv) == 2 and "was interrupted: add --resume" in capsys.readouterr().err
    assert main.run_as_command([*argv, "--resume"]) == 0
    again, whole = (read_json(path / "results.json", "") for path in (tmp_path / "run", finished))
    assert again | {"timing": None} == whole | {"timing": None}


def test_the_results_of_a_finished_run_are_not_measured_again(finished, cache, capsys):
    before = (finished / "results.json").read_bytes()
    argv = [*ARGV, "--run-dir", str(finished), "--cache-dir", str(cache)]
    assert main.run_as_command([*argv, "--ce-windows", "8"]) == 0
    assert (finished / "results.json").read_bytes() == before
    said = capsys.readouterr().out
    assert "measured on 256 windows" in said and f"evaluate {finished} --ce-windows 8" in " ".join(said.split())


def test_evaluate_gives_the_figures_of_the_training(finished, tmp_path, cache):
    results = read_json(finished / "results.json", "")
    found = evaluated(tmp_path, cache, finished)
    assert list(found) == [member["id"] for member in results["members"]], "in the order of the box"
    for member in results["members"]:
        own = found[member["id"]]
        assert own["hook_name"] == f"blocks.1.hook_{member['hook']}" and own["d_sae"] == 48
        metrics = {name: value for name, value in member["metrics"].items() if name != "explained_variance_train"}
        assert own["metrics"] == pytest.approx(metrics, rel=1e-5)
        assert own["intervals"].keys() == member["intervals"].keys()


@pytest.mark.parametrize(
    "hook", [(), ("--hook-name", "blocks.3.hook_attn_out", "--keep-first-position")], ids=["own", "given"]
)
def test_known_dictionaries_on_another_text_and_hook(known, text, tmp_path, cache, hook):
    found = evaluated(tmp_path, cache, *known.values(), "--dataset", text, *hook)
    zero, identity, same = (found[name]["metrics"] for name in ("zero", "identity", "same"))
    for of in found.values():
        assert of["rows"] > of["windows"] >= of["documents"] >= FEWEST_DOCUMENTS
        low, high = np.transpose([of["intervals"][name] for name in CE])
        middle = np.array([of["metrics"][name] for name in CE])
        assert (low <= middle + 1e-9).all() and (middle <= high + 1e-9).all()
    assert found["zero"]["hook_name"] == (hook[1] if hook else "blocks.2.hook_resid_mid")
    assert zero["ce_recovered"] == zero["kl_recovered"] == 0 and zero["l0"] == 0
    assert identity["ce_recovered"] == pytest.approx(1, abs=1e-4)
    assert identity["kl_recovered"] == pytest.approx(1, abs=1e-4)
    assert identity["explained_variance"] == pytest.approx(1) and identity["l0"] == D
    assert same["explained_variance"] < 0 and same["ce_recovered"] < 0.9
    assert zero["ce_clean"] == identity["ce_clean"] > 0


def test_a_run_and_another_dictionary_are_measured_on_a_third_text(finished, known, text, tmp_path, cache, capsys):
    found = evaluated(tmp_path, cache, finished, known["zero"], "--dataset", text, "--layer", 1, "--hook", "mlp_out")
    assert len(found) == 5 and {f["hook_name"] for f in found.values()} == {"blocks.1.hook_mlp_out"}
    assert found["zero"]["metrics"]["ce_recovered"] == 0
    table = capsys.readouterr().out
    assert "CE rec." in table and "0.000 (0.000 to 0.000)" in table and "training rows" not in table


def test_a_run_is_evaluated_on_the_held_out_part_of_its_text(finished, known, tmp_path, cache, capsys):
    path = tmp_path / "report.json"
    argv = [str(known["zero"]), str(finished), "--dataset", "bundled", "--n-samples", "100", "--json", str(path)]
    argv += ["--ce-windows", "0", "--hook-name", "blocks.1.hook_resid_pre", "--cache-dir", str(cache)]
    assert main.run_as_command(["evaluate", *argv]) == 0
    report = json.loads(path.read_text())
    assert report["request"]["held_out"] == 0.1
    assert "ce_recovered" not in report["dictionaries"][0]["metrics"]


def test_documents_of_the_training_are_named_if_more_are_asked_for(finished, tmp_path, cache, capsys):
    evaluated(tmp_path, cache, finished, "--held-out", "0.5", "--ce-windows", "2")
    said = " ".join(capsys.readouterr().out.split())
    assert "--held-out 0.5 is more than the share of 0.1 that was held out from training" in said
    assert "no intervals: they need 50 documents" in said and said.rstrip().endswith("raise --ce-windows")


def test_a_dictionary_without_a_run_on_its_training_text_is_reported(finished, tmp_path, cache, capsys):
    member, few = next((finished / "members").iterdir()), ("--n-samples", "50", "--ce-windows", "0")
    export = without_checksums(shutil.copytree(member, tmp_path / "export"))
    evaluated(tmp_path, cache, export, "--ce-windows", "0")
    assert "on this text" not in capsys.readouterr().out, "the share that its run held out is recorded"
    request = json.loads((tmp_path / "report.json").read_text())["request"]
    assert (request["held_out"], request["n_samples"]) == (0.1, 100), "as its run"
    cfg = json.loads((export / "cfg.json").read_text())
    assert cfg["metadata"].pop("held_out") == 0.1
    (export / "cfg.json").write_text(json.dumps(cfg))
    told = f"{tmp_path / 'export'} was trained on this text and does not record on which documents: "
    evaluated(tmp_path, cache, export, *few)
    assert f"{told}none is left out" in capsys.readouterr().out
    evaluated(tmp_path, cache, export, finished, *few)
    assert f"{told}those that the runs held out are used" in capsys.readouterr().out
    evaluated(tmp_path, cache, member, *few)
    assert "on this text" not in capsys.readouterr().out, "its run says which documents it never saw"


@pytest.mark.parametrize("name, same", [("gpt2", False), (str(BUNDLED_MODEL), True)], ids=["another", "same"])
def test_a_dictionary_of_another_model_needs_model_name(finished, tmp_path, cache, capsys, name, same):
    member, other = next((finished / "members").iterdir()), tmp_path / "other"
    without_checksums(shutil.copytree(member, other))
    cfg = json.loads((other / "cfg.json").read_text())
    few = ("--n-samples", "50", "--ce-windows", "0")
    (other / "cfg.json").write_text(json.dumps({**cfg, "metadata": {**cfg["metadata"], "model_name": name}}))
    argv = ["evaluate", str(member), str(other), *few, "--cache-dir", str(cache)]
    assert main.run_as_command(argv) == (0 if same else 2)
    refusal = f"{other} was trained on the model gpt2, {member} on bundled: evaluate each alone, or give the model"
    assert (refusal in capsys.readouterr().err) is not same
    evaluated(tmp_path, cache, member, other, *few, "--model-name", "bundled")
    note = f"{other} was trained on the model gpt2, and is measured on bundled"
    out = capsys.readouterr().out
    assert (note in out) is not same and f"{member} was trained on the model" not in out


def test_differences_between_training_and_measured_rows_are_reported(text, tmp_path, cache, capsys):
    both_DxF = np.concatenate([np.eye(D), -np.eye(D)], 1)
    asked = {"prepend_bos": True, "model_from_pretrained_kwargs": {"revision": "v2", "dtype": "bfloat16"}}
    asked |= {"hook_name": "blocks.1.hook_mlp_out"}
    directory = write_dictionary(tmp_path / "d", both_DxF, both_DxF.T, np.zeros(D), **asked)
    argv = ("--dataset", text, "--model-name", "bundled", "--seq-len", 12, "--ce-windows", 0)
    found = evaluated(tmp_path, cache, directory, *argv)["d"]
    assert found["metrics"]["explained_variance"] == pytest.approx(1)
    assert "behind BOS" not in capsys.readouterr().out  # as it was trained
    evaluated(tmp_path, cache, directory, *argv, "--bos", "off")
    said = capsys.readouterr().out
    for sentence in (
        "was trained on a model with revision = 'v2', and is measured on bundled",
        "it was trained on windows behind BOS; here they are without BOS (--bos)",
        "its model ran in bfloat16; here it runs in float32",
        "it was trained on windows of 16 tokens; here they have 12",
    ):
        assert sentence in said


def test_members_that_failed_in_training_are_named(finished, tmp_path, cache, capsys):
    lame = shutil.copytree(finished, tmp_path / "lame", ignore=shutil.ignore_patterns("checkpoints"))
    results = read_json(lame / "results.json", "")
    lost = results["members"][0]
    lost |= {"metrics": None, "failed": {"step": 3, "reason": "its loss is not finite"}}
    write_json(lame / "results.json", results)
    shutil.rmtree(lame / "members" / lost["id"])
    found = evaluated(tmp_path, cache, lame, "--ce-windows", "0")
    assert set(found) == {member["id"] for member in results["members"][1:]}
    assert f"no results for {lost['id']}" in " ".join(capsys.readouterr().out.split())
    for member in results["members"]:
        member |= {"metrics": None, "failed": lost["failed"]}
    write_json(lame / "results.json", results)
    with pytest.raises(InputError, match="all its members failed in training and none was written"):
        dictionaries_in(lame)


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    run = tmp_path / "run"
    (run / "members").mkdir(parents=True)
    (run / "config.json").touch()
    with pytest.raises(InputError, match="not finished: .* --resume"):
        dictionaries_in(run)
    with pytest.raises(InputError, match=f"is a folder of runs: give one or several of them, such as {run}$"):
        dictionaries_in(tmp_path)


def test_names_of_one_model_are_the_same_name():
    cached = "/home/me/hub/models--openai-community--gpt2/snapshots/607a30"
    assert {same_name(n) for n in ("gpt2", "gpt2-small", "openai-community/gpt2", cached)} == {"gpt2"}
    assert {same_name(n) for n in ("bundled", str(BUNDLED_MODEL), str(BUNDLED_CORPUS))} == {"bundled"}
    assert same_name("/home/me/hub/datasets--owner--text/snapshots/607a30:part") == same_name("owner/text:part")
    assert same_name("gpt2-medium") != same_name("gpt2") and same_name("tests") == str(Path("tests").resolve())


REFUSED = {
    "no directory": (("nowhere",), "no such directory"),
    "no dictionary": (("{text.parent}",), "holds no dictionary"),
    "twice": (("{zero}", "{zero}/../zero"), "is given twice"),
    "no hook": (("{unhooked}",), "does not record its hook: give --hook-name"),
    "another hook": (
        ("{zero}", "--hook-name", "blocks.1.q"),
        "must be a hook of TransformerLens, such as blocks.8.hook",
    ),
    "a layer beyond": (("{zero}", "--hook-name", "blocks.9.hook_mlp_out", "--dataset", "bundled"), "must be 0 to 3"),
    "two hooks": (("{zero}", "--hook-name", "blocks.1.hook_mlp_out", "--layer", "2"), "leave --layer and --hook out"),
    "another width": (("{narrow}",), "is for activations of width 16, but bundled has 256"),
    "no text": (("{zero}", "--dataset", "{empty}"), "empty"),
    "too short a text": (("{zero}", "--dataset", "{short}"), "no held_out window of 16 tokens"),
    "no numbers": (("{large}",), "its explained variance on these activations is not a number (-inf)"),
    "no text named": (("{zero}",), "does not record its dataset: give --dataset"),
    "other weights": (
        ("{revision}",),
        "was trained on another version of its model (revision = 'v2')",
    ),
    "next to the root": (("/dev",), "/dev holds no dictionary"),
    "nothing": ((), "DIR"),
}


@pytest.mark.parametrize(("argv", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_invalid_evaluations_are_refused_with_the_reason(argv, reason, known, text, tmp_path, cache, capsys):
    narrow = np.zeros((16, 8))
    at = {"hook_name": "blocks.1.hook_mlp_out", "dataset_path": str(text)}
    places = {"zero": known["zero"], "narrow": write_dictionary(tmp_path / "n", narrow, narrow.T, np.zeros(16), **at)}
    places["unhooked"] = write_dictionary(tmp_path / "u", narrow, narrow.T, np.zeros(16), dataset_path=str(text))
    places |= {"text": text, "empty": tmp_path / "empty.txt", "short": tmp_path / "short.txt"}
    of_v2 = at | {"model_from_pretrained_kwargs": {"revision": "v2"}}
    places["revision"] = write_dictionary(tmp_path / "r", narrow, narrow.T, np.zeros(16), **of_v2)
    large = np.full((256, 8), 2.0**100)  # as if a bit of the exponents was flipped
    places["large"] = write_dictionary(tmp_path / "l", large, large.T, np.zeros(256), **at)
    places["empty"].touch()
    places["short"].write_text("Too few words.")
    capsys.readouterr()
    assert main.run_as_command(["evaluate", *(a.format(**places) for a in argv), "--cache-dir", str(cache)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and reason in error, error
