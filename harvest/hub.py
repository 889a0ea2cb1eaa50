"""A request to the model hub, with a time limit: whether a repository exists and may be read. Does not import torch."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Literal

from harvest.errors import InputError

ANSWER_SECONDS = 3.5  # the client itself would retry for 20 to 25 seconds

Kind = Literal["model", "dataset", "sae"]
FLAG = {"model": "--model-name", "dataset": "--dataset", "sae": "from_pretrained:"}
WHAT = {"model": "model with a config.json", "dataset": "data set", "sae": "repository"}
INSTEAD = {
    "model": "give a local model directory, or 'bundled' for the bundled model",
    "dataset": "give a local .txt, .jsonl or .parquet file, or 'bundled' for the bundled corpus",
    "sae": "give the directory of a copy to sae_jax.load",
}


@dataclass(frozen=True)
class Answer:
    """The answer of the hub about a repository."""

    verdict: Literal["there", "missing", "gated", "not in reach"]
    trouble: str = ""  # why the hub is not in reach
    commit: str = ""
    config: dict = field(default_factory=dict)  # a model's config.json


class HubQuestion(threading.Thread):
    """Requests a small file of a repository when created. `answer()` returns within ANSWER_SECONDS.

    This is a daemon thread because the lookup of a host name can hang for longer than any timeout.
    """

    def __init__(self, kind: Kind, name: str, repo: str):
        from huggingface_hub import constants  # slow to import, so before the time limit starts

        super().__init__(daemon=True)
        self.kind, self.name, self.repo = kind, name, repo
        self.endpoint = constants.ENDPOINT
        self._answer = Answer("not in reach", f"{self.endpoint} did not answer within {ANSWER_SECONDS:g} seconds")
        self._deadline = time.monotonic() + ANSWER_SECONDS
        self.start()

    def answer(self) -> Answer:
        """The answer of the hub. Raises InputError if the repository is missing, private or gated."""
        self.join(max(0.0, self._deadline - time.monotonic()))
        answer = self._answer
        asked = f"{FLAG[self.kind]} {self.name}"
        if answer.verdict == "missing":
            raise InputError(
                f"{asked}: the hub at {self.endpoint} has no {WHAT[self.kind]} of this name, or it is private: "
                f"check the name, set HF_TOKEN if it is private, or {INSTEAD[self.kind]}"
            )
        if answer.verdict == "gated":
            page = f"{self.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"
            raise InputError(f"{asked}: access is gated: accept the terms at {page} and set HF_TOKEN")
        return answer

    def refusal(self) -> InputError:
        return InputError(
            f"{FLAG[self.kind]} {self.name}: the hub cannot be reached ({self._answer.trouble}) and there is no copy "
            f"in the local cache: {INSTEAD[self.kind]}"
        )

    def run(self) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session

        file, repo_type = ("config.json" if self.kind == "model" else "README.md"), self.kind.replace("sae", "model")
        url = hf_hub_url(self.repo, file, repo_type=repo_type)
        try:
            response = get_session().get(url, headers=build_hf_headers(), timeout=ANSWER_SECONDS)
            config = dict(response.json()) if self.kind == "model" and response.status_code == 200 else {}
        except Exception as error:  # any exception of the client means that the hub cannot be reached
            self._answer = Answer("not in reach", f"{self.endpoint}: {type(error).__name__}: {error}".splitlines()[0])
            return
        commits = [r.headers["X-Repo-Commit"] for r in (*response.history, response) if "X-Repo-Commit" in r.headers]
        self._answer = Answer(
            self._verdict(response.status_code, response.headers.get("X-Error-Code"), bool(commits)),
            f"{self.endpoint} answered {response.status_code}",
            commits[0] if commits else "",
            config,
        )

    def _verdict(
        self, status: int, error_code: str | None, has_commit: bool
    ) -> Literal["there", "missing", "gated", "not in reach"]:
        """What an answer says about the repository.

        Only answers with the headers of a hub are used, since a proxy or filter also answers 200, 403 or 404.
        """
        if (status == 200 and has_commit) or (error_code == "EntryNotFound" and self.kind != "model"):
            return "there"  # a repository need not have a README
        if error_code == "GatedRepo":
            return "gated"
        if error_code in ("RepoNotFound", "EntryNotFound", "RevisionNotFound"):
            return "missing"
        return "not in reach"
