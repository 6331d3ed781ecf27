"""Releases of the model: tags of GTO on commits whose gate passed, and the stages of deployment that they are in.

    python -m commands.registry release [VERSION]        tag HEAD as model@VERSION, or as the next patch
    python -m commands.registry promote STAGE [VERSION]  put a release, or the last one, in a stage
    python -m commands.registry rollback STAGE           put back what was in a stage before
    python -m commands.registry list                     every release with what it is made of
    python -m commands.registry baseline VERSION         write reports/released.json anew
    python -m commands.registry mirror VERSION           tell MLflow again

What a release is stands in git alone: dvc.lock has the hashes of its data and models, params.yaml its settings, reports/ its
scores. Its bytes are in DVC's remote. The golden scores that the gate holds the next release against are written after each
release or rollback, to be committed. Where MLFLOW_TRACKING_URI names a server, MLflow is told of releases and stages too.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import dvc.api
import yaml
from dvc.exceptions import DvcException
from gto import api as gto
from gto.exceptions import GTOException
from gto.versions import SemVer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from commands import deploy
from commands.summary import WIDTH, table
from temper import gate, mlflow, pages, params, records, released
from temper.recipe import Recipe

ARTIFACT = "model"  # of `artifacts` in dvc.yaml
OWN = ("raw", "probes")  # folders of files that no stage makes
USAGE = (
    "python -m commands.registry release [VERSION] | promote STAGE [VERSION] | rollback STAGE | list | "
    "baseline VERSION | mirror VERSION"
)


@dataclass(frozen=True)
class Lineage:
    """What a release is made of."""

    version: str
    stages: list[str]
    commit: str
    trained: str
    """How, from the base to the release: base, sft, dpo."""
    data: str
    """DVC's md5 of data/mix."""
    model: str
    """DVC's md5 of the released model."""
    params: str
    """sha256 of params.yaml."""
    exact: str
    gate: str

    def row(self) -> tuple[str, ...]:
        short = (self.commit[:12], self.data[:12], self.model[:12], self.params[:12])
        return (self.version, ", ".join(self.stages), *short, self.trained, self.exact, self.gate)


def main(arguments: list[str]) -> None:
    known: dict[str, tuple[Callable[..., None], range]] = {
        "release": (release, range(2)),
        "promote": (promote, range(1, 3)),
        "rollback": (rollback, range(1, 2)),
        "list": (show, range(1)),
        "baseline": (baseline, range(1, 2)),
        "mirror": (mirror, range(1, 2)),
    }
    command, *rest = arguments or [""]
    if command not in known or len(rest) not in known[command][1]:
        raise SystemExit(f"registry: {' '.join(arguments) or 'nothing asked'}: expected {USAGE}")
    try:
        known[command][0](*rest)
    except (GTOException, DvcException) as error:
        raise SystemExit(
            f"registry: {command}: {' '.join(str(error).split())}: `make releases` shows what there is"
        ) from None


def release(version: str | None = None) -> None:
    """Push what HEAD made to DVC's remote and tag it; refuses what another could not fetch and make again."""
    if edited := git("status", "--porcelain", "--untracked-files=no").splitlines():
        raise SystemExit(
            f"{edited[0][3:]}: not as HEAD has it, and a release is a commit: commit it, then `make release`"
        )
    if lacking := lost():
        raise SystemExit(
            f"{lacking[0]}: in neither git nor DVC, so nobody could make the release again ({len(lacking)} such files): "
            "`git add` or `dvc add`, `make repro`, commit, then `make release`"
        )
    gate.require("make release")
    if dvc_("status", "--quiet").returncode:
        raise SystemExit(
            "dvc.lock: is of other code, settings or data (`dvc status`): run `make repro`, commit, then `make release`"
        )
    if not deploy.remote():
        raise SystemExit(
            ".dvc/config: no remote to fetch a release from: `dvc remote add --default NAME URL`, and commit it"
        )
    known = versions()
    if known and released.read().version not in known:
        raise SystemExit(
            f"{released.FILE}: not of a release: `python -m commands.registry baseline {known[-1]}`, `make gate`, commit"
        )
    if (pushed := dvc_("push")).returncode:
        raise SystemExit(f"dvc push: {' '.join(pushed.stderr.split())}: mend the remote, then `make release`")
    tagged = gto.register(".", ARTIFACT, "HEAD", version=version).version
    print(
        f"{ARTIFACT}@{tagged}: {git('rev-parse', 'HEAD').strip()[:12]}; `git push origin {ARTIFACT}@{tagged}` publishes it"
    )
    print(f"  anyone with the remote: dvc artifacts get <repository> {ARTIFACT} --rev {tagged}")
    baseline(tagged)
    mirror(tagged)


def lost() -> list[str]:
    """Files of raw/ and probes/ that a clone of HEAD lacks after `dvc pull`: DVC pushes outs and what was added, but no deps."""
    others = git("ls-files", "--others", "-z", "--", *OWN).split("\0")[:-1]
    held = dvc.api.DVCFileSystem(".", rev="HEAD")
    return [file for file in others if not held.exists(file)]


def mirror(version: str) -> None:
    """Tell MLflow of a release and of the stages that it is in, where a server is configured."""
    address = mlflow.server()
    if not address:
        return
    found = lineage(version)
    tags = {
        key: getattr(found, key) for key in ("version", "commit", "trained", "data", "model", "params", "exact", "gate")
    }
    origin = git("config", "--default", ".", "remote.origin.url").strip()
    source = f"{deploy.without_login(origin)}@{ARTIFACT}@{version}"
    try:
        number = mlflow.register(address, ARTIFACT, version, source, tags)
        for stage in found.stages:
            mlflow.promote(address, ARTIFACT, version, stage)
    except mlflow.Refused as refused:
        raise SystemExit(
            f"MLflow: {refused}: {version} is released all the same: `python -m commands.registry mirror {version}` repeats"
        ) from None
    print(f"  MLflow: version {number} of {ARTIFACT}")


def promote(stage: str, version: str | None = None) -> None:
    chosen = version or next(iter(versions()[::-1]), None)
    if not chosen:
        raise SystemExit("registry: promote: nothing is released: `make release` first")
    assign(stage, chosen)


def rollback(stage: str) -> None:
    """Put back the release that was in `stage` before the one that is in it now first came there."""
    history = assigned(stage)
    before = history[: history.index(history[-1])] if history else []
    if not before:
        raise SystemExit(
            f"registry: rollback: nothing was in {stage} before {history[-1] if history else 'now'}: `make promote` a release"
        )
    assign(stage, before[-1])
    baseline(before[-1])


def show() -> None:
    head = ("release", "stages", "commit", "data", "model", "params", "trained", "exact", "gate")
    rows = [lineage(version).row() for version in versions()]
    if not rows:
        print("nothing is released yet: `make release`")
        return
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH).print(table("Releases", head, rows))


def baseline(version: str) -> None:
    """Write what a release scored on the golden set, for the gate to hold the next one against."""
    tag, path = f"{ARTIFACT}@{version}", f"data/evaluate/{chosen(version).release}-golden.jsonl"
    lines = dvc.api.read(path, repo=".", rev=tag, mode="rb").splitlines()
    rows = [records.parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    released.FILE.write_text(released.text(version, rows), encoding="utf-8")
    print(f"  {released.FILE}: the gate holds the next release against {version}: commit it")


def assign(stage: str, version: str) -> None:
    # Forced, since a release that comes back to a stage was in it before.
    gto.assign(".", ARTIFACT, stage, version=version, force=True)
    print(f"{stage}: {ARTIFACT}@{version}; `git push --tags` publishes it")
    if address := mlflow.server():
        try:
            mlflow.promote(address, ARTIFACT, version, stage)
        except mlflow.Refused as refused:
            print(
                f"  MLflow: {refused}: {stage} is moved all the same: `python -m commands.registry mirror {version}` repeats"
            )


def assigned(stage: str) -> list[str]:
    """Releases in the order that they came to `stage`; the last is in it now."""
    names = git("tag", "--list", f"{ARTIFACT}#{stage}#*").split()
    commits = {tagged(f"{ARTIFACT}@{version}"): version for version in versions()}
    found = sorted(names, key=lambda name: int(name.rpartition("#")[2]))
    return [commits[tagged(name)] for name in found if tagged(name) in commits]


def versions() -> list[str]:
    """Of every release, the lowest first."""
    if not git("tag", "--list", f"{ARTIFACT}@*"):
        return []  # of which GTO knows no artifact yet
    found = (str(one["version"]) for one in gto.show(".", ARTIFACT, registered_only=True))
    return [one.version for one in sorted(map(SemVer, found))]


def lineage(version: str) -> Lineage:
    tag = f"{ARTIFACT}@{version}"
    outs = {
        out["path"]: out["md5"]
        for stage in yaml.load(at(tag, "dvc.lock"), Loader=yaml.CSafeLoader)["stages"].values()
        for out in stage.get("outs", [])
    }
    recipe = chosen(version)
    scores, checks = (
        json.loads(at(tag, name)) for name in (f"reports/evaluate/{recipe.release}.json", str(gate.REPORT))
    )
    return Lineage(
        version,
        [stage for stage in stages() if assigned(stage)[-1:] == [version]],
        tagged(tag),
        " → ".join(recipe.chain()),
        outs["data/mix"],
        outs[f"models/{recipe.release}"],
        hashlib.sha256(at(tag, "params.yaml").encode()).hexdigest(),
        pages.percent((scores["exact"], scores["exact_low"], scores["exact_high"])),
        f"{checks[gate.PASSED]} passed, {checks[gate.SKIPPED]} skipped",
    )


def chosen(version: str) -> Recipe:
    """The recipe of a release."""
    found = OmegaConf.create(at(f"{ARTIFACT}@{version}", "params.yaml"))
    return params.fitted(DictConfig(found), "recipe", Recipe, f"{ARTIFACT}@{version}:params.yaml")


def stages() -> list[str]:
    names = (name.split("#")[1] for name in git("tag", "--list", f"{ARTIFACT}#*#*").split())
    return sorted(set(names))


def tagged(tag: str) -> str:
    """The commit of a tag."""
    return git("rev-parse", f"{tag}^{{commit}}").strip()


def at(tag: str, path: str) -> str:
    return git("show", f"{tag}:{path}")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"git {' '.join(arguments[:2])}: {' '.join(done.stderr.split())}: `make releases` shows what there is"
        )
    return done.stdout


def dvc_(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
