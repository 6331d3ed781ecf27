"""What each kind of change reruns, exactly.

The graph, its deps, its params and DVC are the real ones; only each stage's work is replaced, by a command that derives its outs
from the content of its deps and params, so that an experiment takes half a minute. tests/test_pipeline.py runs the real work.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from temper import graph

pytestmark = pytest.mark.slow

STAND_IN = '''
"""Write the outs of the stage named by argv as a function of its deps and params."""
import hashlib, json, os, sys
from pathlib import Path
import yaml

text = Path("params.yaml").read_bytes()
graph = Path(__file__).with_name(hashlib.sha256(text).hexdigest() + ".json")
if not graph.exists():  # the first stage expands the graph for those after it, which takes seconds
    from temper.graph import stages
    found = {one.name: [one.deps, one.params, one.outs] for one in stages(Path("graph.yaml"))}
    half = graph.with_suffix(f".{os.getpid()}")
    half.write_text(json.dumps(found))
    half.rename(graph)
deps, params, outs = json.loads(graph.read_text())[sys.argv[1]]
settings = yaml.load(text, yaml.CSafeLoader)

def chosen(key):
    value = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value

files = [file for dep in deps for file in (sorted(Path(dep).rglob("*")) if Path(dep).is_dir() else [Path(dep)])]
content = [file.read_bytes() for file in files if file.is_file()]
content += [repr([key, chosen(key)]).encode() for key in params]
digest = hashlib.sha256(b"|".join(content)).hexdigest()
for out in outs:
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
        for name in ("train", "validation", "test", "golden", "preferences", "rl"):
            (path / f"{name}.jsonl").write_text(digest)
with open(Path(__file__).parent / "ran.log", "a") as log:
    log.write(sys.argv[1] + "\\n")
'''


def asked(variant: str) -> set[str]:
    """Stages that ask a new release about its safety: its verdicts are against the base's, which are read again."""
    return {f"responses@{variant}", f"safety@{variant}", "safety@base"}


LAST = {"gate", "card", "scorecard"}
RETAINED = {f"retention@{name}" for name in ("gptq", "awq", "gguf")} | LAST
BENCHED = {f"bench@{name}" for name in ("bf16", "ngram", "eagle3", "gptq", "awq", "gguf")}
DRAFTED = {"draft@eagle3", "bench@eagle3"}
RELEASED = RETAINED | BENCHED | DRAFTED | {"quantize@gptq", "quantize@awq", "quantize@gguf"}
AFTER_DPO = RELEASED | asked("dpo") | {"dpo@sft", "evaluate@dpo"}
AFTER_SFT = AFTER_DPO | {"sft@base", "preferences@sft", "evaluate@sft"}
AUDITED = AFTER_SFT | {"audit", "datacard", "evaluate@base", "responses@base"}
AFTER_SPLIT = AUDITED | {"split", "contamination", "mix"}
# Quality may score with the base model, so it runs; where its rows are the same, as they are without that scorer, pii to mix do
# not. The stand-in's rows never are.
BASE_MODEL = AFTER_SPLIT | {"base", "quality", "pii"}
SEEDED = {stage.name for stage in graph.stages()} - {"base", "general"}

RUN_ALL = " && dvc exp run --run-all"
# As they stand in the README.
SWEEPS = re.findall(
    r"^    (dvc exp run .*)$", Path("README.md").read_text().split("## Sweeps")[1].split("\n## ")[0], re.MULTILINE
)


LIBRARY = re.compile(r"^ +- (?:temper|requirements)/.*\n", re.MULTILINE)
"""Deps that nothing here edits: DVC reads and writes its lock after each stage, which with them takes most of the time."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, clone_to: Callable[[Path], Path]) -> Path:
    """A clone whose stages do stand-in work, reproduced once."""
    root = tmp_path_factory.mktemp("sweeps") / "tree"
    clone_to(root)
    tools = root.parent
    (tools / "stand_in.py").write_text(STAND_IN)
    pipeline = LIBRARY.sub("", (root / "dvc.yaml").read_text())
    (root / "graph.yaml").write_text(pipeline)
    replaced = re.sub(
        r"cmd: .*-m scripts\.(\w+)(?: (\$\{(?:item\.\w+|key)\}))?(?: \$\{item\.model\})?(?: \$\{recipe\.release\})?$",
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
    return set(runs(root, shlex.join(["dvc", *arguments])))


def runs(root: Path, line: str) -> Counter[str]:
    """How often a line of shell ran each stage."""
    log = root.parent / "ran.log"
    log.unlink(missing_ok=True)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": programs, "PYTHONPATH": str(root), "DVC_NO_ANALYTICS": "1"}
    result = subprocess.run(["sh", "-c", line], cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return Counter(log.read_text().split() if log.is_file() else [])


def restore(tree: Path) -> None:
    """Back to the committed run, from DVC's cache, without what another recipe left in folders that a stage reads whole."""
    git(tree, "checkout", "--quiet", "--", ".")
    git(tree, "clean", "-d", "--force", "--quiet")
    for folder in ("data", "models"):
        shutil.rmtree(tree / folder)
    assert ran(tree, "checkout") == set()


def test_nothing_changed_runs_nothing(tree: Path) -> None:
    assert ran(tree, "repro") == set()


# Values that no line of the README has: what ran once with the same inputs comes out of DVC's run cache. Several changes at once
# run what each of them reaches.
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        pytest.param("sft.lora.rank=4", AFTER_SFT, marks=pytest.mark.exhaustive),
        ("model=qwen3-8b", BASE_MODEL),
        ("seed=3", SEEDED),
        pytest.param("recipe=sft", RELEASED | asked("sft"), marks=pytest.mark.exhaustive),
        pytest.param(
            "recipe=orpo",
            RELEASED | asked("orpo") | {"preferences@base", "orpo@base", "evaluate@orpo"},
            marks=pytest.mark.exhaustive,
        ),
        ("recipe=sft-dpo-grpo", RELEASED | asked("grpo") | {"grpo@dpo", "evaluate@grpo"}),
        ("quantize.awq.group_size=64 draft.epochs=2", {"quantize@awq", "retention@awq", "bench@awq"} | DRAFTED | LAST),
        ("retention.limits.kl=0.5", RETAINED),
        ("recipe.formats=[gguf] recipe.draft=[]", LAST),
        pytest.param("split.seed=3", AFTER_SPLIT, marks=pytest.mark.exhaustive),
        ("bench.bf16.load.warmup=4", LAST | {"bench@bf16"}),
        (
            "bench.ngram.speculation.tokens=5 bench.eagle3.speculation.tokens=2",
            {"bench@ngram", "bench@eagle3", "card", "scorecard"},
        ),
        ("hardware.price.hour=2", {"card", "scorecard"}),
        ("hardware.runtime.threads=1 executor=ray tracking=wandb-offline", set()),
    ],
)
def test_an_experiment_runs_what_its_change_reaches(tree: Path, overrides: str, expected: set[str]) -> None:
    assert ran(tree, "exp", "run", *(part for one in overrides.split() for part in ("-S", one))) == expected
    restore(tree)


def test_a_comment_in_conf_runs_nothing(tree: Path) -> None:
    file = tree / "conf/dpo/sigmoid.yaml"
    text = file.read_text()
    file.write_text("# a word about beta\n" + text)
    assert ran(tree, "exp", "run") == set()
    file.write_text(text)


def test_a_beta_of_the_readme_trains_no_sft(tree: Path) -> None:
    assert runs(tree, SWEEPS[0]) == dict.fromkeys(AFTER_DPO, 1)
    restore(tree)


@pytest.mark.exhaustive
def test_neither_do_several(tree: Path) -> None:
    assert runs(tree, SWEEPS[1]) == dict.fromkeys(AFTER_DPO, 3)
    restore(tree)


@pytest.mark.exhaustive
def test_a_grid_of_the_readme_shares_what_its_points_have_in_common(tree: Path) -> None:
    # Ranks 8 and 16 on two base models: three points beside the default, on one new base and its data.
    # The default itself passes a gate that stops nothing, so its verdict and what quotes it are a fourth.
    expected = dict.fromkeys(BASE_MODEL, 1) | dict.fromkeys(AFTER_SFT, 3) | dict.fromkeys(LAST, 4)
    # DVC's run cache holds no stage with an out that git keeps; the data card takes a third of a second.
    assert runs(tree, SWEEPS[2].removesuffix(RUN_ALL) + RUN_ALL) == expected | {"datacard": 2}
