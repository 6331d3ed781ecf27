"""Write into dvc.yaml, for each stage, the code that it depends on: its script, what that imports, its environment.

DVC sees no Python imports, so an edit of a module that no dep names would rerun nothing. `--check` only compares.
"""

import ast
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from temper import graph

GRAPH = Path("dvc.yaml")
# Modules that do their work in a process of another environment, whose lock decides their numbers too.
BORROWED = {
    "temper/embeddings.py": "train",
    "temper/gguf_scores.py": "quantize",
    "temper/ifeval.py": "train",
    "temper/perplexity.py": "train",
    "temper/published.py": "main",
    "temper/rendering.py": "serve",
    "temper/reward_scores.py": "train",
    "temper/rollouts.py": "serve",
    "temper/variants.py": "quantize",
}
# Modules that run as processes of their own, by the module that starts them without importing them.
STARTED = {"temper/variants.py": ("temper/llama_app.py", "temper/llama_worker.py", "temper/llama.py")}


def main(arguments: list[str]) -> None:
    yaml = YAML()
    yaml.width = 132
    yaml.indent(mapping=2, sequence=4, offset=2)
    tree = yaml.load(GRAPH.read_text())
    stale = []
    for stage in {stage.script: stage for stage in graph.definitions()}.values():
        body = tree["stages"][stage.script]
        deps = body.get("do", body)["deps"]
        wanted = code(stage) + [dep for dep in deps if not is_code(dep)]
        if list(deps) != wanted:
            stale.append(stage.script)
            deps[:] = wanted
    if stale and "--check" in arguments:
        raise SystemExit(
            f"dvc.yaml: the code that {', '.join(stale)} depends on is not what it imports: run `make deps`"
        )
    if stale:
        with GRAPH.open("w") as out:
            yaml.dump(tree, out)


def code(stage: graph.Stage) -> list[str]:
    """The script, the locks and what they leave out, then every module that the script imports, directly or not."""
    script = Path(f"scripts/{stage.script}.py")
    imported = modules(script, set())
    imported |= {module for starter in imported & STARTED.keys() for module in STARTED[starter]}
    locks = sorted({stage.env, *(BORROWED[module] for module in imported & BORROWED.keys())})
    requirements = [f"requirements/{name}.txt" for name in (*locks, "excludes")]
    return [str(script), *requirements, *sorted(imported)]


def is_code(dep: Any) -> bool:
    return str(dep).endswith(".py") or str(dep).startswith("requirements/")


def modules(source: Path, seen: set[str]) -> set[str]:
    """Files of temper that `source` imports, added to `seen`."""
    for name in _imported(source):
        path = Path(name.replace(".", "/") + ".py")
        if path.is_file() and str(path) not in seen:
            seen.add(str(path))
            modules(path, seen)
    return seen


def _imported(source: Path) -> list[str]:
    """Dotted names of temper that `source` imports, as a module or from one."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "temper":
            names += [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] == "temper"]
    return names


if __name__ == "__main__":
    main(sys.argv[1:])
