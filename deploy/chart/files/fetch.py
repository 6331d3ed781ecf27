"""Fill folders with what DVC has at a revision, each held against its hash: run by the chart, by compose and by systemd.

    TEMPER_REPOSITORY=ADDRESS TEMPER_REVISION=COMMIT python3 fetch.py PATH MD5 FOLDER [PATH MD5 FOLDER …]

Needs the standard library and the command `dvc` alone. A folder that holds it already is left as it is, without a network.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CHUNK = 2**20


def main(arguments: list[str]) -> None:
    if not arguments or len(arguments) % 3:
        raise SystemExit(__doc__)
    for path, md5, folder in zip(*(iter(arguments),) * 3, strict=True):
        fill(Path(folder), path, md5)


def fill(folder: Path, path: str, md5: str) -> None:
    """Make `folder` what `path` is at the revision; exits when what came is not `md5`."""
    if held(folder) == md5:
        print(f"{folder}: holds {path} ({md5}) already", flush=True)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place: what is half there has no name that a server reads, and a rename on one volume is one step.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        came = Path(scratch, folder.name)
        get(path, came)
        if (found := held(came)) != md5:
            raise SystemExit(
                f"{path}: {found} came, expected {md5}: was dvc.lock of {revision()} made elsewhere than it was pushed?"
            )
        place(came, folder, md5)
    print(f"{folder}: {path} ({md5})", flush=True)


def get(path: str, target: Path) -> None:
    command = ["dvc", "get", repository(), path, "--rev", revision(), "--out", str(target)]
    try:
        status = subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        raise SystemExit("dvc: not installed: take the image of deploy/fetch.Dockerfile, or install it") from None
    if status:
        raise SystemExit(
            f"{path}: dvc get ended with status {status} (above): is {revision()[:12]} pushed, and were its outs (`dvc push`)? "
            "May this machine read both?"
        )


def place(came: Path, folder: Path, md5: str) -> None:
    """Move `came` to `folder`, where another pod on the same volume may just have done so."""
    if folder.exists() and held(folder) != md5:
        shutil.rmtree(folder)
    try:
        came.rename(folder)
    except OSError:
        if held(folder) != md5:
            raise


def held(folder: Path) -> str:
    """DVC's hash of a folder: MD5 of the list of its files, each with its own; empty where there is none."""
    if not folder.is_dir():
        return ""
    listed = sorted(files(folder), key=lambda file: file["relpath"])
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def files(folder: Path) -> Iterator[dict[str, str]]:
    for file in folder.rglob("*"):
        if file.is_file():
            yield {"md5": digest(file), "relpath": file.relative_to(folder).as_posix()}


def digest(file: Path) -> str:
    found = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as content:
        while chunk := content.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()


def repository() -> str:
    return setting("TEMPER_REPOSITORY")


def revision() -> str:
    return setting("TEMPER_REVISION")


def setting(name: str) -> str:
    if not os.environ.get(name):
        raise SystemExit(f"{name}: not set: `make deploy` writes it into deploy/release")
    return os.environ[name]


if __name__ == "__main__":
    main(sys.argv[1:])
