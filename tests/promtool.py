"""promtool, which evaluates queries: the one on the path, else that of Debian's package, unpacked into the user's cache."""

import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from temper import envs

PACKAGE = "prometheus"


@cache
def found() -> Path:
    """Raises FileNotFoundError naming what is missing to fetch it."""
    if tool := shutil.which("promtool"):
        return Path(tool)
    home = envs.cache() / "downloads" / f"debian-{PACKAGE}"
    if (home / "usr/bin/promtool").is_file():
        return home / "usr/bin/promtool"
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if not shutil.which(tool)]:
        raise FileNotFoundError(
            f"promtool and {missing[0]}, which would fetch it, are not installed: it comes with Prometheus"
        )
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="partial-") as name:
        folder = Path(name)
        command = ["apt-get", "download", PACKAGE]
        if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
            raise FileNotFoundError(
                f"promtool is not installed, and apt-get could not fetch Debian's package {PACKAGE}"
            )
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / "made")], check=True)
        with suppress(OSError):  # another process was first
            (folder / "made").rename(home)
    return home / "usr/bin/promtool"
