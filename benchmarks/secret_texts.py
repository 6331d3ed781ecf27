"""Texts with secrets drawn at random, and texts with what only looks like one: the labelled set of benchmarks.pii for secrets.

Secrets have the forms that their issuers document, chosen for how common they are and not for whether they are found.
"""

import base64
import random
import string
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

Draw = random.Random
SEED = 17
ALPHANUMERIC = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
URL_SAFE = ALPHANUMERIC + "-_"
UPPER = string.ascii_uppercase + string.digits


class Text(NamedTuple):
    text: str
    secret: str
    """Empty if there is none."""
    form: str
    """Whose secret it is, or what the look-alike is."""


def texts(of_each: int) -> Iterator[Text]:
    """`of_each` texts of every form of secret, then of every look-alike; the surroundings take turns."""
    for forms, is_secret in ((SECRETS, True), (LOOK_ALIKES, False)):
        for form, make in forms.items():
            for number in range(of_each):
                draw = random.Random(f"{SEED}/{form}/{number}")
                made = make(draw)
                yield Text(_around(made, number, draw), made if is_secret else "", form)


def _around(made: str, number: int, draw: Draw) -> str:
    """A sentence, code, configuration, a log or a command with `made` in it; of a key of several lines, the lines alone."""
    if "\n" in made:
        return draw.choice(("Here is the file:\n\n{}\n\nIs it readable?", "cat <<EOF > out\n{}\nEOF")).format(made)
    return SURROUNDINGS[number % len(SURROUNDINGS)].replace("…", made)


def _of(letters: str, count: int) -> Callable[[Draw], str]:
    return lambda draw: "".join(draw.choices(letters, k=count))


def _after(prefix: str, letters: str, count: int) -> Callable[[Draw], str]:
    return lambda draw: prefix + _of(letters, count)(draw)


def _json64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _jwt(draw: Draw) -> str:
    claims = f'{{"sub":"{draw.randrange(10**9)}","iat":{1_500_000_000 + draw.randrange(10**8)}}}'
    return ".".join([_json64('{"alg":"HS256","typ":"JWT"}'), _json64(claims), _of(URL_SAFE, 43)(draw)])


def _bytes64(draw: Draw, count: int) -> str:
    return base64.b64encode(draw.randbytes(count)).decode()


def _private_key(draw: Draw) -> str:
    body = _bytes64(draw, 1190)
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    return "\n".join(["-----BEGIN RSA PRIVATE KEY-----", *lines, "-----END RSA PRIVATE KEY-----"])


def _postgres(draw: Draw) -> str:
    return f"postgresql://app:{_of(ALPHANUMERIC, 14)(draw)}@db{draw.randrange(9)}.internal.net:5432/orders"


def _azure(draw: Draw) -> str:
    account = f"DefaultEndpointsProtocol=https;AccountName=store{draw.randrange(99)};AccountKey={_bytes64(draw, 64)}"
    return f"{account};EndpointSuffix=core.windows.net"


SECRETS: dict[str, Callable[[Draw], str]] = {
    "aws_access_key": _after("AKIA", string.ascii_uppercase + "234567", 16),
    "github": _after("ghp_", ALPHANUMERIC, 36),
    "github_fine_grained": lambda draw: f"github_pat_{_of(ALPHANUMERIC, 22)(draw)}_{_of(ALPHANUMERIC, 59)(draw)}",
    "gitlab": _after("glpat-", URL_SAFE, 20),
    "slack": lambda draw: f"xoxb-{draw.randrange(10**11, 10**12)}-{draw.randrange(10**12, 10**13)}-{_of(ALPHANUMERIC, 24)(draw)}",
    "stripe": _after("sk_live_", ALPHANUMERIC, 24),
    "openai": _after("sk-proj-", URL_SAFE, 156),
    "anthropic": lambda draw: f"sk-ant-api03-{_of(URL_SAFE, 93)(draw)}AA",
    "google": _after("AIzaSy", URL_SAFE, 33),
    "hugging_face": _after("hf_", string.ascii_letters, 34),
    "npm": _after("npm_", ALPHANUMERIC, 36),
    "pypi": _after("pypi-AgEIcHlwaS5vcmc", URL_SAFE, 160),
    "sendgrid": lambda draw: f"SG.{_of(URL_SAFE, 22)(draw)}.{_of(URL_SAFE, 43)(draw)}",
    "telegram": lambda draw: f"{draw.randrange(10**9, 10**10)}:AA{_of(URL_SAFE, 33)(draw)}",
    "docker_hub": _after("dckr_pat_", URL_SAFE, 27),
    "databricks": _after("dapi", HEX, 32),
    "jwt": _jwt,
    "private_key": _private_key,
    "connection_uri": _postgres,
    "azure_storage": _azure,
}  # fmt: skip
LOOK_ALIKES: dict[str, Callable[[Draw], str]] = {
    "git_commit": _of(HEX, 40),
    "md5": _of(HEX, 32),
    "sha256": _of(HEX, 64),
    "image_digest": _after("sha256:", HEX, 64),
    "uuid": lambda draw: str(uuid.UUID(int=draw.getrandbits(128), version=4)),
    "image_base64": lambda draw: f"data:image/png;base64,iVBORw0KGgo{_bytes64(draw, 120)}",
    "integrity": lambda draw: f"sha512-{_bytes64(draw, 64)}",
    "ssh_public_key": lambda draw: f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{_bytes64(draw, 32)[:43]} dev@laptop",
    "object_id": _of(HEX, 24),
    "asset": lambda draw: f"/static/js/main.{_of(HEX, 20)(draw)}.chunk.js",
    "video_id": lambda draw: f"https://www.youtube.com/watch?v={_of(URL_SAFE, 11)(draw)}",
    "tracking_number": _after("1Z", UPPER, 16),
    "stand_in": lambda draw: draw.choice(("sk-your-key-here", "<YOUR_API_KEY>", "ghp_xxxxxxxxxxxx", "${API_TOKEN}", "changeme")),
    "variable": lambda draw: draw.choice(("os.environ['SERVICE_TOKEN']", "settings.secret_key_base", "get_access_token(client)")),
}  # fmt: skip
SURROUNDINGS = (
    "I pasted … into the form and it still does not work, what now?",
    "In the log: 2024-05-01T10:22:31Z INFO sync finished with … after 3 retries.",
    'client = Client("…", timeout=30)',
    "export VALUE=…\npython run.py",
    '{"name": "worker", "value": "…", "replicas": 2}',
    "service:\n  id: …\n  region: eu-west-1",
    "The answer is `…`, as the documentation says.",
    "curl -s https://api.service.io/v1/items -H 'X-Value: …'",
)
