"""A model's folder: a local one as it is, or a repository of the Hugging Face Hub at a revision, from its cache or fetched."""

import hashlib
import os
import re
from pathlib import Path

COMMIT = re.compile(r"[0-9a-f]{40}")
OFFLINE = "check the network and HF_HUB_OFFLINE, name a local folder as its id, or choose an option that needs no Hub"


def folder(place: str, id: str | None, revision: str | None, file: str | None) -> Path:
    """Where the model `id` is, all of it or only `file`; exits naming `place` in the settings when it is not to be had."""
    if id is None:
        raise SystemExit(f"{place} needs an id, a local folder or a repository of the Hub: add it")
    local = Path(os.path.expandvars(id)).expanduser()
    if local.is_dir():
        return local.absolute()
    if revision is None:
        raise SystemExit(
            f"{place}: no folder {id}, and no revision: run the stage that writes it, or pin a commit of the Hub's repository"
        )
    return _fetched(place, id, pinned(place, revision), file)


def pinned(place: str, revision: str) -> str:
    """The revision, if it is a commit; exits for a branch or a tag, whose content may be another tomorrow."""
    if not COMMIT.fullmatch(revision):
        raise SystemExit(f"{place}: revision is '{revision}': pin a commit, 40 hexadecimal digits, which does not move")
    return revision


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files, hidden ones apart."""
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            with file.open("rb") as content:
                whole.update(f"{name.as_posix()} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _fetched(place: str, id: str, revision: str, file: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted = [file] if file else ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(id, revision=revision, allow_patterns=wanted))
    except (RepositoryNotFoundError, HFValidationError):
        raise SystemExit(
            f"{place}: {id}: no such repository, or one you may not see: correct it, or set HF_TOKEN"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise SystemExit(
            f"{place}: {id} at {revision}: the Hub did not give it ({type(error).__name__}): {OFFLINE}"
        ) from None
