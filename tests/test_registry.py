"""Releases: tagged where the gate passed, fetched from the tag alone with equal hashes, promoted, rolled back, listed."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import registry
from temper import records, released
from tests import test_mlflow
from tests.test_mlflow import Registry

ROOT = Path(__file__).resolve().parent.parent
# A graph of the real one's shape and names, whose model is the seed that it was made with.
GRAPH = {
    "stages": {
        "mix": {
            "cmd": "mkdir -p data/mix && find raw -name '*.jsonl' | sort | xargs cat > data/mix/train.jsonl",
            "deps": ["raw"],
            "outs": ["data/mix"],
        },
        "dpo": {
            "matrix": {"policy": "${recipe.dpo}"},
            "cmd": "mkdir -p models/dpo && echo ${seed} > models/dpo/model.safetensors",
            "deps": ["data/mix"],
            "params": ["seed"],
            "outs": ["models/dpo"],
        },
        "evaluate": {
            "cmd": "python evaluate.py",
            "deps": ["models/dpo", "evaluate.py"],
            "outs": ["data/evaluate/dpo-golden.jsonl"],
            "metrics": [{"reports/evaluate/dpo.json": {"cache": False}}],
        },
        "gate": {
            "cmd": "python gate.py",
            "deps": ["reports/evaluate/dpo.json", "reports/released.json", "gate.py"],
            "metrics": [{"reports/gate.json": {"cache": False}}],
        },
    },
    "artifacts": {"model": {"path": "models/${recipe.release}", "type": "model"}},
}
OFF = ("sft", "preferences", "kto", "orpo", "reward", "ppo", "grpo", "formats", "draft", "judged", "scored")
RECIPE: dict[str, Any] = {key: [] for key in OFF} | {
    "dpo": ["base"],
    "variants": ["base", "dpo"],
    "safety": ["base", "dpo"],
    "release": "dpo",
}
EVALUATE = """
import json, pathlib
exact = pathlib.Path("models/dpo/model.safetensors").read_text().strip() == "2"
pathlib.Path("data/evaluate").mkdir(exist_ok=True)
row = {"id": "1", "exact": exact, "valid_json": True, "argument_f1": 0.5, "output": "x"}
pathlib.Path("data/evaluate/dpo-golden.jsonl").write_text(json.dumps(row) + "\\n")
scores = {"exact": float(exact), "exact_low": 0.0, "exact_high": 1.0}
pathlib.Path("reports/evaluate/dpo.json").write_text(json.dumps(scores))
"""
GATE = """
import json, pathlib
pathlib.Path("reports/gate.json").write_text(json.dumps({"passed": 1, "failed": 0, "skipped": 2}))
"""
Repeat = Callable[[int], None]


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def dvc(*arguments: str, cwd: Path | None = None) -> str:
    return run(sys.executable, "-m", "dvc", *arguments, cwd=cwd)


def commit(message: str = "run") -> None:
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--allow-empty", "-m", message)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a remote, and a committed run whose gate passed."""
    here = tmp_path / "repository"
    (here / "reports/evaluate").mkdir(parents=True)
    monkeypatch.chdir(here)
    written("raw/seeds.jsonl")
    shutil.copy(ROOT / ".gitignore", ".")
    for name, value in (("NAME", "test"), ("EMAIL", "test@localhost")):
        for who in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{who}_{name}", value)
    run("git", "init", "--quiet", "-b", "main")
    dvc("init", "--quiet")
    dvc("remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    Path("dvc.yaml").write_text(yaml.safe_dump(GRAPH, sort_keys=False))
    Path("evaluate.py").write_text(EVALUATE)
    Path("gate.py").write_text(GATE)
    released.FILE.write_text(released.text(None, []))
    made(1)
    return here


def made(seed: int) -> None:
    """A committed run of another seed."""
    Path("params.yaml").write_text(yaml.safe_dump({"seed": seed, "recipe": RECIPE}))
    dvc("repro", "--quiet")
    commit()


def written(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"{name}\n")


def refused() -> str:
    """Why HEAD is not released: a line."""
    before = run("git", "tag")
    with pytest.raises(SystemExit) as stopped:
        registry.main(["release"])
    assert "\n" not in str(stopped.value)
    assert run("git", "tag") == before
    return str(stopped.value)


def fetched(tag: str, repository: Path, target: Path) -> dict[str, str]:
    """md5 of each file of the released model, as a clone at `tag` pulls it."""
    run("git", "clone", "--quiet", "--branch", tag, str(repository), str(target))
    dvc("pull", "--quiet", cwd=target)
    return hashes(target / "models/dpo")


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.slow
def test_every_release_is_fetched_from_its_tag_alone(repository: Path, tmp_path: Path) -> None:
    models = {}
    for seed, version in ((1, "v0.1.0"), (2, "v0.2.0")):
        made(seed)
        models[version] = hashes(Path("models/dpo"))
        registry.main(["release", version])
        commit("baseline")
    assert models["v0.1.0"] != models["v0.2.0"]
    # Nothing but the repository's tags and the remote: the cache and the workspace are gone.
    run("rm", "-rf", ".dvc/cache", "models", "data")
    for version, expected in models.items():
        assert fetched(f"model@{version}", repository, tmp_path / version) == expected
        dvc("artifacts", "get", str(repository), "model", "--rev", version, "-o", f"got-{version}", cwd=tmp_path)
        assert hashes(tmp_path / f"got-{version}") == expected
        dvc("get", str(repository), "models/dpo", "--rev", f"model@{version}", "-o", f"by-path-{version}", cwd=tmp_path)
        assert hashes(tmp_path / f"by-path-{version}") == expected
    # And it is made again from the tag, to the same hashes.
    clone = tmp_path / "v0.1.0"
    dvc("repro", "--quiet", "--force", "--no-run-cache", "--no-commit", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""


@pytest.mark.slow
def test_a_release_is_promoted_rolled_back_and_listed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry.main(["list"])
    assert "nothing is released yet: `make release`" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"promote: nothing is released: `make release`"):
        registry.main(["promote", "prod"])
    for seed, version in ((1, "v0.1.0"), (2, "v0.2.0")):
        made(seed)
        registry.main(["release", version])
        assert released.read() == released.Released(
            version, {"1": {"exact": seed == 2, "valid_json": True, "argument_f1": 0.5}}
        )
        commit("baseline")
        registry.main(["promote", "prod"])
    assert registry.assigned("prod") == ["v0.1.0", "v0.2.0"]
    assert dvc_stage() == "v0.2.0"
    registry.main(["rollback", "prod"])
    assert registry.assigned("prod") == ["v0.1.0", "v0.2.0", "v0.1.0"]
    assert dvc_stage() == "v0.1.0"
    assert released.read().version == "v0.1.0"
    with pytest.raises(SystemExit, match=r"rollback: nothing was in prod before v0\.1\.0"):
        registry.main(["rollback", "prod"])
    with pytest.raises(SystemExit, match=r"registry: promote: .*v9\.0\.0.*`make releases`"):
        registry.main(["promote", "prod", "v9.0.0"])
    capsys.readouterr()
    registry.main(["list"])
    shown = capsys.readouterr().out
    first, second = (next(line for line in shown.splitlines() if version in line) for version in ("v0.1.0", "v0.2.0"))
    assert "prod" in first
    assert "prod" not in second
    lock = yaml.safe_load(registry.at("model@v0.1.0", "dvc.lock"))["stages"]
    assert lock["mix"]["outs"][0]["md5"][:12] in first
    assert lock["dpo@base"]["outs"][0]["md5"][:12] in first
    assert registry.tagged("model@v0.1.0")[:12] in first
    assert hashlib.sha256(registry.at("model@v0.1.0", "params.yaml").encode()).hexdigest()[:12] in first
    assert all(word in first for word in ("base → dpo", "0.0% (0.0–100.0)", "1 passed, 2 skipped"))


def dvc_stage() -> str:
    """The release that DVC itself finds in prod."""
    import dvc.api

    rev = dvc.api.artifacts_show("model", stage="prod")["rev"]
    return next(version for version in registry.versions() if registry.tagged(f"model@{version}") == rev)


@pytest.mark.slow
def test_what_another_could_not_make_again_is_not_released(repository: Path) -> None:
    Path("gate.py").write_text(GATE + "# edited\n")
    assert refused().startswith("gate.py: not as HEAD has it")
    commit("edited, not run")
    assert "`dvc status`" in refused()
    Path("gate.py").write_text(
        GATE.replace('"failed": 0', '"failed": 1, "format_verdict": "failed", "format_value": 0, "format_limit": ""')
    )
    dvc("repro", "--quiet")
    commit()
    assert refused().startswith("reports/gate.json: failed: format")
    Path("gate.py").write_text(GATE)
    dvc("repro", "--quiet")
    Path("reports/gate.json").write_text("{}")
    commit()
    assert refused().startswith("reports/gate.json: not the verdict on what dvc.lock has")
    dvc("repro", "--quiet")
    dvc("remote", "remove", "store")
    commit()
    assert "dvc remote add --default" in refused()


@pytest.mark.slow
def test_what_a_release_was_made_of_comes_with_its_tag(repository: Path, tmp_path: Path) -> None:
    """Files of one's own are in git, or in DVC one by one or as a folder; DVC pushes none for being a dep."""
    own = ("probes/strong reject.csv", "raw/mined/failures.jsonl", "raw/mined/others.jsonl", "raw/tickets.jsonl")
    written(*own)
    dvc("repro", "--quiet")
    run("git", "commit", "--quiet", "--all", "-m", "run, without what it read")
    assert refused().startswith(
        f"{own[0]}: in neither git nor DVC, so nobody could make the release again (4 such files)"
    )
    dvc("add", "--quiet", own[0], "raw/mined")
    assert refused().startswith("probes/.gitignore: in neither git nor DVC"), "what `dvc add` writes is not committed"
    run("git", "add", "probes", "raw/mined.dvc", "raw/.gitignore")
    run("git", "commit", "--quiet", "-m", "added")
    assert refused().startswith(f"{own[3]}: in neither git nor DVC")
    written("raw/mined/positives.jsonl")
    assert refused().startswith("raw/mined/positives.jsonl: in neither git nor DVC"), "newer than its folder's .dvc"
    Path("raw/mined/positives.jsonl").unlink()
    run("git", "add", own[3])
    dvc("repro", "--quiet")
    commit()
    registry.main(["release", "v0.1.0"])
    fetched("model@v0.1.0", repository, clone := tmp_path / "clone")
    assert {name: (clone / name).read_text() for name in own} == {name: f"{name}\n" for name in own}
    dvc("repro", "--quiet", "--force", "--no-run-cache", "--no-commit", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""


@pytest.fixture
def mirrored(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server of MLflow's registry beside the repository, whose origin has a login in its address."""
    run("git", "remote", "add", "origin", "https://me:secret@example.org/temper.git")
    with test_mlflow.serving() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield


@pytest.mark.slow
def test_mlflow_is_told_of_releases_and_of_their_stages(
    repository: Path, mirrored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, version in ((1, "v0.1.0"), (2, "v0.2.0")):
        made(seed)
        registry.main(["release", version])
        commit("baseline")
        registry.main(["promote", "prod"])
    assert "  MLflow: version 2 of model\n" in capsys.readouterr().out
    assert Registry.aliases == {"release-0-1-0": "1", "release-0-2-0": "2", "prod": "2"}
    told = Registry.versions[0]
    assert told["source"] == "https://example.org/temper.git@model@v0.1.0"
    tags = {tag["key"]: tag["value"] for tag in told["tags"]}
    assert (tags["version"], tags["commit"]) == ("v0.1.0", registry.tagged("model@v0.1.0"))
    assert (tags["trained"], tags["gate"]) == ("base → dpo", "1 passed, 2 skipped")
    registry.main(["rollback", "prod"])
    assert Registry.aliases["prod"] == "1"


@pytest.mark.slow
def test_a_release_stands_where_mlflow_refuses_it_and_is_told_again(
    repository: Path, mirrored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Registry.refuses = True
    repeats = "`python -m commands.registry mirror v0.1.0` repeats"
    with pytest.raises(SystemExit) as stopped:
        registry.main(["release", "v0.1.0"])
    said = "MLflow: PERMISSION_DENIED: ask an admin"
    assert str(stopped.value) == f"{said}: v0.1.0 is released all the same: {repeats}"
    assert registry.versions() == [released.read().version] == ["v0.1.0"]
    capsys.readouterr()
    registry.main(["promote", "prod"])
    assert capsys.readouterr().out.splitlines()[1:] == [f"  {said}: prod is moved all the same: {repeats}"]
    assert registry.assigned("prod") == ["v0.1.0"]
    Registry.refuses = False
    for _ in range(2):
        registry.main(["mirror", "v0.1.0"])
        assert Registry.aliases == {"release-0-1-0": "1", "prod": "1"}


@pytest.mark.slow
def test_a_baseline_that_is_of_no_release_is_named(repository: Path) -> None:
    registry.main(["release"])  # the first: v0.0.1
    assert registry.versions() == ["v0.0.1"]
    run("git", "checkout", "--", "reports")
    made(2)
    with pytest.raises(
        SystemExit, match=r"released\.json: not of a release: `python -m commands\.registry baseline v0\.0\.1`"
    ):
        registry.main(["release"])
    registry.main(["baseline", "v0.0.1"])
    dvc("repro", "--quiet")
    commit()
    registry.main(["release"])
    assert registry.versions() == ["v0.0.1", "v0.0.2"]


@pytest.mark.parametrize("asked", [[], ["publish"], ["promote"], ["list", "all"]])
def test_what_it_does_not_know_names_what_it_does(asked: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^registry: .*expected python -m commands\.registry release"):
        registry.main(asked)


def test_the_released_model_is_an_artifact_of_the_graph() -> None:
    artifact = yaml.safe_load((ROOT / "dvc.yaml").read_text())["artifacts"][registry.ARTIFACT]
    assert artifact["path"] == "models/${recipe.release}"


def test_what_the_baseline_keeps_is_read_back(tmp_path: Path) -> None:
    rows = [{"id": "1", "exact": True, "valid_json": True, "argument_f1": 0.5, "output": "x"}]
    records.write(tmp_path / "golden.jsonl", rows)
    (tmp_path / "released.json").write_text(released.text("v1.0.0", records.read(tmp_path / "golden.jsonl")))
    found = released.read(tmp_path / "released.json")
    assert (found.version, found.golden["1"]["argument_f1"]) == ("v1.0.0", 0.5)
