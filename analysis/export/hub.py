"""Uploads of dictionaries to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from harvest.errors import InputError


def refuse_no_hub(repo: str) -> None:
    """Raise InputError if an upload is impossible. Called before anything is written."""
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import validate_repo_id

    asked, endpoint = f"--push-to-hub {repo}", constants.ENDPOINT
    login = "set HF_TOKEN to a token with write access, or run `hf auth login`"
    try:
        validate_repo_id(repo)
    except ValueError as e:
        raise InputError(f"{asked}: not a valid name ({e}): give USER/NAME") from e
    if get_token() is None:
        raise InputError(f"{asked}: you are not logged in to the hub at {endpoint}: {login}, or leave the flag out")
    try:
        HfApi().whoami()
    except HfHubHTTPError as e:
        reason = str(e).splitlines()[0]
        raise InputError(f"{asked}: the hub at {endpoint} rejects the login ({reason}): {login}") from e
    except Exception as e:  # the client raises many types if the hub cannot be reached
        raise InputError(f"{asked}: the hub at {endpoint} cannot be reached ({e}): leave the flag out") from e


def push_to_hub(directory: Path, repo: str, name: str) -> str:
    """Upload `directory` into the folder `name`, which SAELens calls the sae_id. Returns the repository's URL.

    If the repository has no README.md of its own, the model card becomes it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=directory, path_in_repo=name, commit_message=f"Upload SAE {name}")
        if not api.file_exists(repo, "README.md"):
            api.upload_file(repo_id=repo, path_or_fileobj=directory / "README.md", path_in_repo="README.md")
    except Exception as e:  # the client raises many types if the hub refuses or cannot be reached
        again = f"try again with `hf upload {repo} {directory} {name}`"
        reason = str(e).splitlines()[0]
        raise InputError(f"--push-to-hub {repo}: written to {directory}, but not uploaded ({reason}): {again}") from e
    return str(url)
