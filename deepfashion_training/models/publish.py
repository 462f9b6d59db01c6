"""Publishing a trained LoRA on the Hub: whether it can go there, what is uploaded, and what never is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import validate_repo_id

CARD = "README.md"
#: What a card may show beside its words. Whatever else it may link to, or lies in the folder, is never uploaded.
_SHOWN = re.compile(r"\]\((validation/[\w-]+\.png|evaluation\.json)\)")
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


def check_push(repo_id: str | None, default_name: str) -> str:
    """The full id, ``OWNER/NAME``, under which ``push`` can upload; without an owner it is the token's user.

    ``repo_id`` None stands for ``default_name``. Raises ``ValueError``, one line with the fix, for an invalid id,
    without a token that may write, and when the Hub does not answer.
    """
    wanted = repo_id or default_name
    try:
        validate_repo_id(wanted)
    except ValueError as error:
        raise ValueError(f"--hub_model_id: {error} Name it OWNER/NAME") from error
    try:
        me = HfApi().whoami()
    except Exception as error:  # no token or network, offline mode: each HTTP library has its own classes
        raise ValueError(
            f"--push_to_hub: the Hub does not say who you are: {error}. Log in with `hf auth login`, or set HF_TOKEN"
        ) from error
    if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError("--push_to_hub: your token may only read: log in with one that may write (`hf auth login`)")
    return wanted if "/" in wanted else f"{me['name']}/{wanted}"


def published_files(folder: Path) -> list[str]:
    """Names in ``folder`` of what is uploaded: LoRA, card, and the pictures and ``evaluation.json`` that it shows.

    Raises ``ValueError`` when one is missing or lies elsewhere, and when one holds an access token.
    """
    card = folder / CARD
    shown = _SHOWN.findall(card.read_text(encoding="utf-8")) if card.is_file() else []
    names = [LORA_WEIGHT_NAME_SAFE, CARD, *dict.fromkeys(shown)]
    token = (get_token() or "").encode()
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"nothing was uploaded: {folder} has no {name}")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"nothing was uploaded: {path} is a link out of its folder: put the file there")
        content = path.read_bytes()
        if _TOKEN.search(content) or (token and token in content):
            raise ValueError(f"nothing was uploaded: {name} holds an access token: remove it, and revoke the token")
    return names


def push(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload ``published_files(folder)`` to the model repository ``repo_id`` of ``check_push``; returns its address.

    The repository is made if need be; all files go in one commit, so it is never half there. Raises ``ValueError``,
    saying where the LoRA is and how to upload it later, when the Hub refuses or ``private`` is asked for and the
    repository is public, and as ``published_files`` does.
    """
    names = published_files(folder)
    try:
        api = HfApi()
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: as its organization has it
        if private and not api.model_info(repo_id).private:  # it was there before
            raise ValueError("--hub_private: it is public: make it private in its settings, or name another")
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=names, commit_message="Upload a try-on LoRA"
        )
    except Exception as error:  # each HTTP library has its own classes; whatever it is, what was trained is safe
        # One command for each file: what --include means with several names depends on the version of hf.
        flag = " --private" if private else ""
        uploads = [f"hf upload {repo_id} {shlex.join([name, name])}{flag}" for name in names]
        later = [f"cd {shlex.quote(str(folder))}", *uploads]
        raise ValueError(
            f"the LoRA was trained and is in {folder}, but it was not uploaded to {repo_id}: {error}. "
            f"Upload it later with: {' && '.join(later)}"
        ) from error
    return str(url)
