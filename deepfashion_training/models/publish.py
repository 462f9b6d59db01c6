"""A trained LoRA on the Hub: whether it can go there, what is uploaded, and what never is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import huggingface_hub
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

CARD = "README.md"
#: What a card may show beside its words. Whatever else it may link to, or lies in the folder, is never uploaded.
_SHOWN = re.compile(r"\]\((validation/[\w-]+\.png|evaluation\.json)\)")
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


def check_push(repo_id: str | None, default_name: str, private: bool = False) -> str:
    """The full id, ``OWNER/NAME``, under which ``push`` can upload; without an owner it is the token's user.

    ``repo_id`` None stands for ``default_name``. Raises ``ValueError``, one line with the fix, for an invalid id,
    without a token that may write, when the Hub does not answer, and when ``private`` is asked for and the repository
    is public. Whether a fine-grained token may write there, only the upload can tell.
    """
    wanted = repo_id or default_name
    try:
        validate_repo_id(wanted)
    except ValueError as error:
        raise ValueError(f"--hub_model_id: {error} Name it OWNER/NAME") from error
    api = HfApi(token=_token())
    try:
        me = api.whoami()
    except Exception as error:  # no network, offline mode, an unknown token: each HTTP library has its own classes
        raise ValueError(
            f"--push_to_hub: the Hub does not say who you are: {_one_line(error)} `hf auth whoami` tests token and "
            "network."
        ) from error
    access = me.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        raise ValueError(
            f"--push_to_hub: the token {access.get('displayName', '')!r} may only read: make one that may write at "
            "https://huggingface.co/settings/tokens and log in with it (`hf auth login`)"
        )
    wanted = wanted if "/" in wanted else f"{me['name']}/{wanted}"
    owners = [me["name"], *(organization["name"] for organization in me.get("orgs", []))]
    if access.get("role") == "write" and wanted.split("/")[0] not in owners:
        raise ValueError(f"--hub_model_id {wanted}: your token writes for {', '.join(owners)} only")
    if private:
        _refuse_public(api, wanted)
    return wanted


def _token() -> str:
    token = get_token()
    if not token:
        raise ValueError("--push_to_hub needs a token that may write: log in with `hf auth login`, or set HF_TOKEN")
    return token


def _refuse_public(api: HfApi, repo_id: str) -> None:
    """Raise ``ValueError`` when the repository exists and is public: uploading does not make it private."""
    try:
        public = not api.model_info(repo_id).private
    except RepositoryNotFoundError:
        return
    except Exception as error:  # see check_push
        raise ValueError(f"--hub_private: is {repo_id} private? The Hub does not say: {_one_line(error)}") from error
    if public:
        raise ValueError(f"--hub_private: {repo_id} is public: make it private in its settings, or name another")


def published_files(folder: Path) -> list[str]:
    """Names in ``folder`` of what is uploaded: LoRA, card, and the pictures and ``evaluation.json`` that it shows.

    Raises ``ValueError`` when one is missing or lies elsewhere, and when one holds an access token.
    """
    _check(folder, CARD)
    names = [LORA_WEIGHT_NAME_SAFE, CARD]
    names += dict.fromkeys(_SHOWN.findall((folder / CARD).read_text(encoding="utf-8")))
    for name in names:
        _check(folder, name)
    return names


def _check(folder: Path, name: str) -> None:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"nothing was uploaded: {folder} has no {name}")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"nothing was uploaded: {path} is a link out of its folder: put the file there")
    content, token = path.read_bytes(), get_token()
    text = content
    if path.suffix == ".safetensors":  # an 8-byte length, a JSON header of that length, then the weights
        text = content[8 : 8 + int.from_bytes(content[:8], "little")]
    if (token and token.encode() in content) or (path.suffix != ".png" and _TOKEN.search(text)):
        raise ValueError(f"nothing was uploaded: {name} holds an access token: take it out, and make the token invalid")


def push(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload ``published_files(folder)`` to the model repository ``repo_id`` of ``check_push``; returns its address.

    The repository is made if need be; all files go in one commit, so it is never half there. Raises ``ValueError``,
    saying where the LoRA is and how to upload it later, when the Hub refuses, and as ``published_files`` does.
    """
    names = published_files(folder)
    try:
        api = HfApi(token=_token())
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: as its organization has it
        if private:
            _refuse_public(api, repo_id)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=names, commit_message="Upload a try-on LoRA"
        )
    except Exception as error:  # each HTTP library has its own classes; whatever it is, what was trained is safe
        raise ValueError(
            f"the LoRA was trained and is in {folder}, but it was not uploaded to {repo_id}: {_one_line(error)} "
            f"Upload it later with: {upload_command(folder, repo_id, names, private)}"
        ) from error
    return str(url)


def upload_command(folder: Path, repo_id: str, names: list[str], private: bool = False) -> str:
    """The shell command that uploads exactly ``names`` of ``folder``."""
    # Up to 0.36 --include takes a list, and the last one counts; later it takes one name and may be repeated.
    between = " --include " if int(huggingface_hub.__version__.split(".")[0]) >= 1 else " "
    chosen = between.join(map(shlex.quote, names))
    return f"hf upload {repo_id} {shlex.quote(str(folder))} --include {chosen}{' --private' if private else ''}"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
