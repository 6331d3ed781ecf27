"""Data sets from elsewhere: a repository of the Hugging Face Hub at a commit, or a file behind a URL at a stated hash."""

import hashlib
import re
import tempfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx

from temper import envs, files, wheels

COMMIT = re.compile(r"[0-9a-f]{40}")
# Of a repository of which no files are named. JSON is left out: there it often holds metadata.
TABLES = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv")
READABLE = [f"*{table}{packing}" for table in TABLES for packing in ("", *files.PACKED)]
GATED = "accept its terms on the Hub and set HF_TOKEN (or run `hf auth login`)"
OFFLINE = "check the network and HF_HUB_OFFLINE, or choose data that need no Hub (data=bfcl)"
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20


def hub(id: str, revision: str | None, wanted: list[str]) -> list[tuple[str, Path]]:
    """Files of the data set `id` at a commit: (path in the repository, path here), in order; from the cache when it has them.

    `wanted` holds globs, splits (`train`) or a configuration with its split (`main/train`); [] wants every data file.
    """
    if revision is None or not COMMIT.fullmatch(revision):
        raise SystemExit(
            f"conf/data: {id}: revision is '{revision}', where a commit of 40 hexadecimal digits is needed: a branch moves"
        )
    patterns = [pattern for one in wanted for pattern in _patterns(one)] or READABLE
    folder = _snapshot(id, revision, patterns)
    names = sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
    # The cache may hold more than was asked for now.
    chosen = [name for name in names if any(_matches(name, pattern) for pattern in patterns)]
    if not chosen:
        asked = ", ".join(wanted) or "data files"
        raise SystemExit(
            f"conf/data: {id} at {revision}: no {asked} in it: correct `files` (globs, or splits like train)"
        )
    return [(name, folder / name) for name in chosen]


def url(address: str, sha256: str | None) -> Path:
    """The file behind `address` in the user's cache, downloaded unless it is there; exits if its hash is not `sha256`."""
    if sha256 is None:
        raise SystemExit(f"conf/data: {shown(address)}: a URL without sha256: add the hash of the file behind it")
    name = PurePosixPath(unquote(urlsplit(address).path)).name
    files.suffix(Path(name))
    target = envs.cache() / "downloads" / sha256 / name
    if target.is_file() and wheels.digest(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="partial-") as folder:
        partial = Path(folder) / name
        if (found := _download(address, partial)) != sha256:
            raise SystemExit(
                f"{shown(address)}: sha256 is {found}, conf/data expects {sha256}: "
                "find out why it changed; if that is right, put the new hash there"
            )
        return partial.replace(target)


def shown(address: str) -> str:
    """An address without what may be secret: its user, password and query."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _download(address: str, target: Path) -> str:
    """Write what `address` gives to `target` and return its SHA-256."""
    digest = hashlib.sha256()
    try:
        with httpx.stream("GET", address, follow_redirects=True, timeout=TIMEOUT) as answer, target.open("wb") as out:
            answer.raise_for_status()
            for block in answer.iter_bytes(BLOCK):
                digest.update(block)
                out.write(block)
    except httpx.HTTPStatusError as error:
        raise SystemExit(
            f"{shown(address)}: the server answered {error.response.status_code}: correct the address in conf/data"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SystemExit(
            f"{shown(address)}: not downloaded ({type(error).__name__}): check the address and the network, then repeat"
        ) from None
    return digest.hexdigest()


def _snapshot(id: str, revision: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = f"conf/data: {id} at {revision}"
    try:
        return Path(snapshot_download(id, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise SystemExit(f"{place}: the data set is gated: {GATED}") from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise SystemExit(
            f"{place}: no such data set or commit, or one you may not see: correct it, or {GATED}"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, ConnectionError) as error:
        raise SystemExit(f"{place}: the Hub did not give it ({type(error).__name__}): {OFFLINE}") from None


def _patterns(wanted: str) -> list[str]:
    """A glob or file as it is; a split as the names that the Hub's data sets give it, in any folder or its configuration's."""
    if "*" in wanted or "." in PurePosixPath(wanted).name:
        return [wanted]
    folder, _, split = wanted.rpartition("/")
    begins = [f"{folder}/{split}"] if folder else [split, f"*/{split}"]
    return [f"{begin}{end}" for begin in begins for end in ("-*", ".*", "/*")]


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and not name.startswith(".")
