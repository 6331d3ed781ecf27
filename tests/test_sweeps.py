"""What each kind of change reruns, exactly.

The graph, its deps, its params and DVC are the real ones; only each stage's work is replaced, by a command that derives its outs
from the content of its deps and params, so that dozens of experiments take a minute. tests/test_pipeline.py runs the real work.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from temper import graph

pytestmark = pytest.mark.slow

STAND_IN = '''
"""Write the outs of the stage named by argv as a function of its deps and params."""
import hashlib, sys
from pathlib import Path
import yaml
from omegaconf import OmegaConf
from temper import graph

stage = next(stage for stage in graph.stages(Path("graph.yaml")) if stage.name == sys.argv[1])
params = OmegaConf.load("params.yaml")
files = [file for dep in stage.deps for file in (sorted(Path(dep).rglob("*")) if Path(dep).is_dir() else [Path(dep)])]
content = [file.read_bytes() for file in files if file.is_file()]
content += [repr(OmegaConf.to_container(OmegaConf.create({"x": OmegaConf.select(params, p)}))).encode() for p in stage.params]
digest = hashlib.sha256(b"|".join(content)).hexdigest()
for out in stage.outs:
    path = Path(out)
    if out == "models/base":
        path.mkdir(parents=True)
        (path / "model.safetensors").write_text(digest)
        for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
            (path / name).write_text("the tokenizer does not depend on how many layers a model has")
    elif path.suffix:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"digest": "%s"}' % digest)
    else:
        path.mkdir(parents=True)
        for name in ("train", "validation", "test", "preferences"):
            (path / f"{name}.jsonl").write_text(digest)
with open(Path(__file__).parent / "ran.log", "a") as log:
    log.write(sys.argv[1] + "\\n")
'''

AFTER_DPO = {"dpo", "quantize@gguf", "bench@bf16", "evaluate@dpo", "card"}
AFTER_SFT = AFTER_DPO | {"sft", "preferences", "evaluate@sft"}
AFTER_SPLIT = AFTER_SFT | {"split", "contamination", "evaluate@base"}
BASE_MODEL = AFTER_SFT | {"base", "evaluate@base"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, clone_to: Callable[[Path], Path]) -> Path:
    """A clone whose stages do stand-in work, reproduced once."""
    root = tmp_path_factory.mktemp("sweeps") / "tree"
    clone_to(root)
    tools = root.parent
    (tools / "stand_in.py").write_text(STAND_IN)
    pipeline = (root / "dvc.yaml").read_text()
    (root / "graph.yaml").write_text(pipeline)
    replaced = re.sub(
        r"cmd: .*-m scripts\.(\w+)(?: (\$\{item\.\w+\}))?$",
        _command(tools / "stand_in.py"),
        pipeline,
        flags=re.MULTILINE,
    )
    (root / "dvc.yaml").write_text(replaced)
    (root / "dvc.lock").unlink(missing_ok=True)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "stand-ins")
    assert ran(root, "repro") == {stage.name for stage in graph.stages()}
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "reproduced")
    return root


def _command(script: Path) -> Callable[[re.Match[str]], str]:
    def replace(match: re.Match[str]) -> str:
        item = f"@{match[2]}" if match[2] else ""
        return f"cmd: {sys.executable} {script} {match[1]}{item}"

    return replace


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments], cwd=root, check=True)


def ran(root: Path, *arguments: str) -> set[str]:
    """The stages that a DVC command ran."""
    log = root.parent / "ran.log"
    log.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(root), "DVC_NO_ANALYTICS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    names = log.read_text().split() if log.is_file() else []
    return set(names)


def test_nothing_changed_runs_nothing(tree: Path) -> None:
    assert ran(tree, "repro") == set()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("dpo.beta=0.2", AFTER_DPO),
        ("sft.lora.rank=8", AFTER_SFT),
        ("model=tiny", BASE_MODEL),
        ("split.seed=3", AFTER_SPLIT),
        ("bench.bf16.max_tokens=32", {"bench@bf16", "card"}),
        ("hardware.runtime.threads=1", set()),
        ("tracking=wandb-offline", set()),
    ],
)
def test_an_experiment_runs_what_its_change_reaches(tree: Path, override: str, expected: set[str]) -> None:
    assert ran(tree, "exp", "run", "-S", override) - {"card"} == expected - {"card"}
    git(tree, "checkout", "--quiet", "--", ".")
    assert ran(tree, "checkout") == set()


def test_a_comment_in_conf_runs_nothing(tree: Path) -> None:
    file = tree / "conf/dpo/sigmoid.yaml"
    text = file.read_text()
    file.write_text("# a word about beta\n" + text)
    assert ran(tree, "exp", "run") == set()
    file.write_text(text)


def test_a_queued_beta_sweep_shares_everything_before_dpo(tree: Path) -> None:
    ran(tree, "exp", "run", "--queue", "-S", "dpo.beta=0.05,0.3,0.4")
    assert ran(tree, "exp", "run", "--run-all") == AFTER_DPO
    assert (tree.parent / "ran.log").read_text().split().count("dpo") == 3


def test_a_queued_grid_over_rank_and_model_runs_every_point(tree: Path) -> None:
    ran(tree, "exp", "run", "--queue", "-S", "sft.lora.rank=4,32", "-S", "model=smollm2-135m,tiny")
    # What an earlier experiment made with the same inputs (the tiny base) comes out of DVC's run cache.
    assert AFTER_SFT <= ran(tree, "exp", "run", "--run-all") <= BASE_MODEL
    assert (tree.parent / "ran.log").read_text().split().count("sft") == 4
