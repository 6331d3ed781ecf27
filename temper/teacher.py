"""A teacher behind any OpenAI-compatible endpoint: bounded, retried, and journalled, so that no answer is paid for twice.

The journal is keyed by a hash of the whole request and of the teacher's identity. A killed run reads what it holds and
goes on; the same requests give the same answers, in whatever order they came in. What failed and may not fail again is not in it.
"""

import asyncio
import fcntl
import hashlib
import ipaddress
import json
import os
import random
import re
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import httpx

T = TypeVar("T")
SECTION = "synthesize.teacher"
CONNECT_SECONDS = 10.0
LONGEST_BACKOFF = 60.0  # seconds
TRANSIENT = {408, 409, 425, 429}  # and every 5xx
REFUSED = {400, 413, 422}  # this request, not the teacher: too long, or filtered
WINDOW = 8  # items begun per request under way: a slow one at the head holds up nobody
THOUGHTS = "</think>"
SECRET_NAMES = re.compile(
    r"(?:.*[_-])?(?:api[_-]?key|authorization|bearer|password|secret|credentials?|(?:access|auth|api|hf)[_-]?token)|auth|key|token",
    re.IGNORECASE,
)
SECRET_FORMS = re.compile(r"Bearer |sk-|hf_|gsk_|nvapi-|xai-|AIza")  # of the better-known providers


class TeacherError(Exception):
    """The teacher cannot go on, in one line with what to do; what it answered so far is in the journal."""


@dataclass
class Teacher:
    start_server: bool
    """Serve the folder `model` with this repository's vLLM for the time of the run; `base_url` is not used then."""
    base_url: str
    """Up to and including /v1."""
    model: str
    """Its name at the endpoint, or a folder."""
    dtype: str
    """Of the started server."""
    licence: str
    """Of the teacher; it decides what its answers may be used for."""
    api_key_env: str | None
    """The environment variable that holds the key: the key itself is never in conf/, params.yaml, a log or an output."""
    concurrency: int
    """Requests under way."""
    timeout: float
    """Seconds for one answer."""
    retries: int
    """After the first attempt, on 429, 5xx, timeouts, lost connections and malformed replies."""
    backoff: float
    """Seconds before the first retry; doubled for each further one."""
    patience: float
    """Seconds: a Retry-After beyond it ends the run, which can be repeated later."""
    usd_per_million_prompt_tokens: float
    usd_per_million_completion_tokens: float
    max_usd: float | None
    """Ends the run once that much is spent; null for no limit."""
    extra: dict[str, Any]
    """Merged into the body of every request; a null removes a key."""

    @property
    def place(self) -> str:
        """What a row may say about the endpoint: its host, or `local` for this machine and private networks."""
        host = httpx.URL(self.base_url).host
        return "local" if self.is_here or is_private(host) else host

    @property
    def is_here(self) -> bool:
        return self.start_server or is_loopback(httpx.URL(self.base_url).host)


@dataclass(frozen=True)
class Request:
    messages: list[dict[str, str]]
    temperature: float
    top_p: float
    max_tokens: int
    seed: int

    def body(self, teacher: Teacher) -> dict[str, Any]:
        merged = {"model": teacher.model, **asdict(self), **teacher.extra}
        return {key: value for key, value in merged.items() if value is not None}


@dataclass(frozen=True)
class Reply:
    """`failure` says why there is no text: refused_request, malformed_reply or teacher_failed; `detail` in its words."""

    text: str
    truncated: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: str | None = None
    detail: str = ""

    @property
    def is_final(self) -> bool:
        """Whether to ask again would change nothing: an answer, or the refusal of this very request."""
        return self.failure in (None, "refused_request")


class Journal:
    """Final replies by key, a JSON line each, appended as they come; a line torn by a kill is cut off, an error names its line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"{path}: another run is writing it: wait for that one, or end it") from None
        self._file.seek(0)
        whole = self._file.read()
        lines = whole[: whole.rfind(b"\n") + 1].splitlines()
        self._file.truncate(sum(len(line) + 1 for line in lines))
        found = (_entry(line, f"{path}:{number}") for number, line in enumerate(lines, start=1))
        self.replies = {key: reply for key, reply in found if reply.is_final}

    def append(self, key: str, reply: Reply) -> None:
        """Keep a reply; one that is not final for this run alone, so that the next one asks again."""
        self.replies[key] = reply
        if reply.is_final:
            self._file.write(json.dumps({"key": key, "reply": asdict(reply)}).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass
class Usage:
    """What the answers of a run cost, however many runs it took to get them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    keys: set[str] = field(default_factory=set)
    unanswered: int = 0
    """Requests that the next run asks again."""

    def add(self, key: str, reply: Reply) -> None:
        if key not in self.keys:
            self.keys.add(key)
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
            self.unanswered += not reply.is_final

    def usd(self, teacher: Teacher) -> float:
        prompt = self.prompt_tokens * teacher.usd_per_million_prompt_tokens
        return (prompt + self.completion_tokens * teacher.usd_per_million_completion_tokens) / 1e6


class Client:
    """Ask a teacher within a `with` block; `revision` tells apart two models of the same name (a folder's digest).

    `section` is where its settings are, for errors to name.
    """

    def __init__(self, teacher: Teacher, journal: Path, revision: str = "", section: str = SECTION) -> None:
        self.teacher = checked(teacher, section)
        self._section = section
        self._key = api_key(teacher, section)
        # Two machines of one network may serve different models under one name.
        host = "local" if teacher.is_here else httpx.URL(teacher.base_url).host
        self._identity = f"{host}/{teacher.model}/{revision}"
        self._journal = journal
        self.usage = Usage()
        self.asked = 0
        """Answers that this process has waited for, not read from the journal."""
        self._slots = asyncio.Semaphore(teacher.concurrency)
        self._first = asyncio.Lock()
        self._is_ready = False
        self._resume_at = 0.0

    def __enter__(self) -> "Client":
        self._known = Journal(self._journal)
        self._runner = asyncio.Runner()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx.AsyncClient(
            base_url=self.teacher.base_url,
            headers=headers,
            timeout=httpx.Timeout(self.teacher.timeout, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None),  # the slots bound them
            # The loopback interface must not go through a proxy.
            trust_env=not self.teacher.is_here,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._runner.run(self._http.aclose())
        self._runner.close()
        self._known.close()
        if not error and (left := self.usage.unanswered):
            print(
                f"{self.teacher.base_url}: {left} of {len(self.usage.keys)} requests got no answer: run it again (a stage by "
                "`dvc repro -f -s`) to ask them again",
                flush=True,
            )

    def reach(self) -> None:
        """Exits in one line unless the endpoint answers, takes the key and has the model."""
        list(self.in_order([self._ready()]))

    def in_order(self, work: Iterable[Coroutine[Any, Any, T]]) -> Iterator[T]:
        """Run coroutines that `ask`, several at once, and yield their results in the order of `work`.

        Exits in one line when the teacher cannot go on; everything answered until then is in the journal.
        """
        loop = self._runner.get_loop()
        tasks: deque[asyncio.Task[T]] = deque()
        try:
            for coroutine in work:
                tasks.append(loop.create_task(coroutine))
                if len(tasks) >= WINDOW * self.teacher.concurrency:
                    yield self._runner.run(_result(tasks[0]))
                    tasks.popleft()
            while tasks:
                yield self._runner.run(_result(tasks[0]))
                tasks.popleft()
        except TeacherError as error:
            kept = "its answers so far are kept, so the same command goes on from here" if self._known.replies else ""
            raise SystemExit(f"{error}{kept and f' ({kept})'}") from None
        finally:
            for task in tasks:
                task.cancel()
            self._runner.run(_ended(tasks))

    async def ask(self, request: Request) -> Reply:
        """The teacher's reply, from the journal if it is there; raises TeacherError when there is no going on."""
        body = request.body(self.teacher)
        key = _digest([self._identity, body])
        reply = self._known.replies.get(key)
        if reply is None:
            async with self._slots:
                await self._ready()
                self._within_budget()
                reply = await self._answer(body)
            self.asked += 1
            self._known.append(key, reply)
        self.usage.add(key, reply)
        return reply

    async def _answer(self, body: dict[str, Any]) -> Reply:
        problem = ""
        for attempt in range(self.teacher.retries + 1):
            if attempt:
                await asyncio.sleep(self._delay(attempt))
            await self._turn()
            try:
                response = await self._http.post("chat/completions", json=body)
            except httpx.TransportError as error:
                problem = _named(error)
                continue
            if response.is_success:
                if reply := parsed(response):
                    return reply
                problem = "a reply that is no chat completion"
            elif response.status_code in TRANSIENT or response.status_code >= 500:
                problem = self._said(response)
                self._hold(response)
            else:
                return self._refusal(response)
        return await self._given_up(problem)

    async def _given_up(self, problem: str) -> Reply:
        """A failure of this one request if the teacher still answers others, else TeacherError."""
        if await self._probe() == 200:
            failure = "malformed_reply" if problem.startswith("a reply") else "teacher_failed"
            return Reply("", failure=failure, detail=problem)
        attempts = self.teacher.retries + 1
        raise TeacherError(f"{self.teacher.base_url}: {problem}, {attempts} times in a row: see what it is busy with")

    def _refusal(self, response: httpx.Response) -> Reply:
        said = self._said(response)
        if response.status_code in REFUSED:
            return Reply("", failure="refused_request", detail=said)
        raise TeacherError(self._remedy(response.status_code, said))

    def _remedy(self, status: int, said: str) -> str:
        place = f"{self.teacher.base_url}: {said}"
        name = self.teacher.api_key_env
        if status in (401, 403):
            wrong = f"it does not take the key in ${name}: correct that" if name else "it wants a key"
            return f"{place}: {wrong}; {self._section}.api_key_env names the variable that holds it"
        return f"{place}: no model '{self.teacher.model}' there: correct {self._section}.model or base_url"

    async def _ready(self) -> None:
        """Before the first paid request: the endpoint answers, takes the key and has the model."""
        async with self._first:
            if not self._is_ready:
                await self._look()
            self._is_ready = True

    async def _look(self) -> None:
        try:
            response = await self._http.get("models")
        except httpx.TransportError as error:
            remedy = f"start the endpoint, or correct {self._section}.base_url"
            raise TeacherError(f"{self.teacher.base_url}: {_named(error)}: {remedy}") from None
        if response.status_code in (401, 403):
            raise TeacherError(self._remedy(response.status_code, self._said(response)))
        names = model_names(response)
        # An alias is served without being listed, so the list alone decides nothing.
        if names and self.teacher.model not in names and await self._probe() in REFUSED | {404}:
            near = get_close_matches(self.teacher.model, names, 5, cutoff=0.3) or names[:5]
            raise TeacherError(
                f"{self.teacher.base_url}: no model '{self.teacher.model}' there: "
                f"set {self._section}.model to one of {', '.join(near)}"
            )

    async def _probe(self) -> int | None:
        """The status of the smallest possible request; None when nothing answers."""
        body = Request([{"role": "user", "content": "ping"}], 0.0, 1.0, 1, 0).body(self.teacher)
        with suppress(httpx.TransportError):
            return (await self._http.post("chat/completions", json=body)).status_code
        return None

    def _hold(self, response: httpx.Response) -> None:
        """Keep every request back for as long as the endpoint asks (Retry-After)."""
        seconds = retry_after(response.headers.get("Retry-After"), time.time())
        if seconds > self.teacher.patience:
            said = self._said(response)
            raise TeacherError(f"{self.teacher.base_url}: {said}: it asks to wait {seconds:.0f} s: run again then")
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)

    async def _turn(self) -> None:
        while (wait := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def _delay(self, attempt: int) -> float:
        """Exponential backoff, with jitter so that requests that failed together do not return together."""
        return min(LONGEST_BACKOFF, self.teacher.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)

    def _within_budget(self) -> None:
        limit, spent = self.teacher.max_usd, self.usage.usd(self.teacher)
        if limit is not None and spent >= limit:
            raise TeacherError(f"{spent:.2f} USD spent: raise {self._section}.max_usd ({limit:.2f}) to go on")

    def _said(self, response: httpx.Response) -> str:
        """Status and message of an error on one line, without the key, which some endpoints repeat."""
        said = error_message(response, self._key)
        return f"{response.status_code} {redacted(response.reason_phrase, self._key)} {said}".strip()


def checked(teacher: Teacher, section: str = SECTION) -> Teacher:
    """The settings, if they make sense; exits naming the one that does not."""
    if not teacher.licence.strip():
        raise SystemExit(f"{section}.licence is empty: name the model's licence (an SPDX id, or its provider's terms)")
    if teacher.concurrency < 1 or teacher.retries < 0:
        raise SystemExit(f"{section}: concurrency must be 1 or more, retries 0 or more")
    try:
        url = httpx.URL(teacher.base_url)
    except httpx.InvalidURL as error:
        raise SystemExit(f"{section}.base_url: {error}: expected http(s)://host[:port]/v1") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise SystemExit(f"{section}.base_url is '{url}': expected http(s)://host[:port]/v1")
    if url.userinfo or url.query:
        raise SystemExit(f"{section}.base_url holds a user, password or query: put the key into api_key_env")
    if name := secret(teacher.extra, os.environ.get(teacher.api_key_env or "", "").strip()):
        raise SystemExit(
            f"{section}.extra holds a key ('{name}'), which outputs would tell: name its variable in api_key_env"
        )
    return teacher


def secret(extra: Any, key: str, name: str = "") -> str | None:
    """The name in `extra`, at any depth, under which a key of an endpoint stands: by its name, its form, or as `key` itself."""
    if isinstance(extra, dict | list):
        inner = extra.items() if isinstance(extra, dict) else ((name, one) for one in extra)
        return next((found for of, one in inner if (found := secret(one, key, str(of)))), None)
    if not isinstance(extra, str) or not extra:
        return None
    is_key = SECRET_NAMES.fullmatch(name) or SECRET_FORMS.match(extra) or (key and key in extra)
    return name if is_key else None


def api_key(teacher: Teacher, section: str = SECTION) -> str:
    """The key from its environment variable, "" when none is named; exits when the variable is not set."""
    if teacher.api_key_env is None:
        return ""
    if not (key := os.environ.get(teacher.api_key_env, "").strip()):
        raise SystemExit(
            f"${teacher.api_key_env} is not set: export it with the key, or set {section}.api_key_env to null"
        )
    return key


def parsed(response: httpx.Response) -> Reply | None:
    """The first choice of a chat completion, without a leading <think> block; None for anything else."""
    try:
        body = response.json()
        choice = body["choices"][0]
        text = choice["message"].get("content") or ""
        # A filter or a tool call leaves no content: an empty answer, which no retry would change.
        text = text.encode("utf-8", "replace").decode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    thoughts, end, said = text.partition(THOUGHTS)
    usage = body["usage"] if isinstance(body.get("usage"), dict) else {}
    tokens = [usage.get(f"{side}_tokens") for side in ("prompt", "completion")]
    asked, answered = (count if isinstance(count, int) else 0 for count in tokens)
    return Reply((said if end else thoughts).strip(), choice.get("finish_reason") == "length", asked, answered)


def retry_after(header: str | None, now: float) -> float:
    """Seconds to wait by a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3); 0 for anything else."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(str(header)).timestamp() - now)
    except ValueError:
        return 0.0


def error_message(response: httpx.Response, key: str) -> str:
    """What an OpenAI-compatible endpoint says about an error, without the key, on one line of at most 200 characters."""
    try:
        body = response.json()
        found = body.get("error", body)
        text = found.get("message", "") if isinstance(found, dict) else found
    except (ValueError, AttributeError, RecursionError):
        text = ""
    # First the key, then the cut, which could leave a part of it.
    return " ".join(redacted(str(text), key).split())[:200]


def redacted(text: str, key: str) -> str:
    return text.replace(key, "…") if key else text


def model_names(response: httpx.Response) -> list[str]:
    """The ids of a reply of /models; [] where an endpoint does not list them."""
    try:
        return [str(model["id"]) for model in response.json()["data"]] if response.is_success else []
    except (ValueError, LookupError, TypeError):
        return []


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_private(host: str) -> bool:
    """Whether an address is one of a private network, whose hosts are nobody else's business."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _entry(line: bytes, place: str) -> tuple[str, Reply]:
    try:
        entry = json.loads(line)
        return entry["key"], Reply(**entry["reply"])
    except (ValueError, LookupError, TypeError):
        raise SystemExit(f"{place}: not an answer of the teacher: delete the line, and it is asked again") from None


def _named(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return f"no answer ({' '.join(str(error).split()) or type(error).__name__})"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


async def _result(task: "asyncio.Task[T]") -> T:
    return await task


async def _ended(tasks: "Iterable[asyncio.Task[Any]]") -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
