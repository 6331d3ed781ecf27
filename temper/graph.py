"""dvc.yaml as a graph: its stages, what feeds what, and a picture of it."""

import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import networkx as nx
import yaml
from omegaconf import DictConfig, OmegaConf

from temper import params

PIPELINE = Path("dvc.yaml")
OFF = "off"


@dataclass(frozen=True)
class Stage:
    """One stage, or one item of a matrix or foreach stage, with paths as they are on disk."""

    name: str
    desc: str
    cmd: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def script(self) -> str:
        return re.search(r"-m scripts\.(\w+)", self.cmd)[1]  # type: ignore[index]

    @property
    def env(self) -> str:
        found = re.search(r"envs run (\w+)", self.cmd)
        return found[1] if found else "main"


def stages(path: Path = PIPELINE) -> list[Stage]:
    """Every stage that runs, items of matrix and foreach expanded, in the order of dvc.yaml."""
    return [stage for stage in definitions(path) if not stage.name.endswith(f"@{OFF}")]


def definitions(path: Path = PIPELINE) -> list[Stage]:
    """Every stage of dvc.yaml; one that the recipe switches off is there once, as `kto@off`."""
    settings = params.tree()
    bodies = yaml.safe_load(path.read_text())["stages"]
    return [stage for name, body in bodies.items() for stage in _expanded(name, body, settings)]


def edges(found: list[Stage]) -> list[tuple[str, str]]:
    """(upstream, downstream) wherever a dep of one stage is an out of another, lies inside one, or holds one."""
    owner = {out: stage.name for stage in found for out in stage.outs}
    pairs = {
        (owner[part], stage.name)
        for stage in found
        for dep in stage.deps
        for part in [dep, *map(str, Path(dep).parents), *(out for out in owner if out.startswith(f"{dep}/"))]
        if part in owner and owner[part] != stage.name
    }
    return sorted(pairs)


def picture(found: list[Stage]) -> str:
    """An SVG of the graph, layered from top to bottom, without the edges that others imply."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    reduced = nx.transitive_reduction(nx.DiGraph(edges(found)))
    places = _places(reduced)
    with rc_context({"svg.hashsalt": "temper", "svg.fonttype": "none", "font.family": "sans-serif"}):
        columns, rows = (sorted({place[axis] for place in places.values()}) for axis in (0, 1))
        width, height = columns[-1] - columns[0] + 1.2, rows[-1] - rows[0] + 0.8
        figure = Figure(figsize=(1.18 * width, 0.55 * height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        for start, end in sorted(reduced.edges):
            arrow = {"arrowstyle": "-|>", "color": "#8a94a6", "shrinkA": 10, "shrinkB": 11, "linewidth": 1.1}
            axes.annotate("", places[end], places[start], arrowprops=arrow)
        colours = {"main": "#dbeafe", "train": "#fde68a", "serve": "#bbf7d0", "quantize": "#fbcfe8"}
        for stage in found:
            box = {"boxstyle": "round,pad=0.45", "facecolor": colours[stage.env], "edgecolor": "#475569"}
            axes.text(*places[stage.name], stage.name, ha="center", va="center", fontsize=9, color="#0f172a", bbox=box)
        axes.set_xlim(columns[0] - 0.6, columns[-1] + 0.6)
        axes.set_ylim(rows[0] - 0.4, rows[-1] + 0.4)
        target = StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None}, transparent=True)
    return target.getvalue()


def _places(graph: nx.DiGraph) -> dict[str, tuple[float, float]]:
    """A row for each generation, its stages spread evenly around the middle; a source stands before its first reader.

    In units of a label: a full row has one for each stage, one of few stages spreads them further.
    """
    generations = enumerate(nx.topological_generations(graph))
    rows = {name: row for row, generation in generations for name in generation}
    for name in graph:
        if not graph.in_degree(name):
            rows[name] = min(rows[reader] for reader in graph.successors(name)) - 1
    members = {row: sorted(name for name in rows if rows[name] == row) for row in set(rows.values())}
    most = max(map(len, members.values()))
    return {
        name: ((column - (len(names) - 1) / 2) * min(1.5, most / len(names)), -float(row))
        for row, names in members.items()
        for column, name in enumerate(names)
    }


def _expanded(name: str, body: dict[str, Any], settings: DictConfig) -> list[Stage]:
    if "foreach" in body:
        items = _value(settings, body["foreach"].strip("${}"))
        each = {key: OmegaConf.create({"key": key, "item": item}) for key, item in items.items()}
        return [_stage(f"{name}@{key}", body["do"], settings, own) for key, own in each.items()]
    if "matrix" not in body:
        return [_stage(name, body, settings, OmegaConf.create())]
    ((key, items),) = body["matrix"].items()
    if isinstance(items, str):
        items = list(_value(settings, items.strip("${}"))) or [OFF]
    return [_stage(f"{name}@{item}", body, settings, OmegaConf.create({"item": {key: item}})) for item in items]


def _stage(name: str, body: dict[str, Any], settings: DictConfig, own: DictConfig) -> Stage:
    """A stage by what it declares, with the values of `own`, which its item adds, before those of `settings`."""

    def filled(entry: Any) -> str:
        text = entry if isinstance(entry, str) else next(iter(entry))
        return re.sub(
            r"\$\{((\w+)[\w.]*)\}", lambda match: str(_value(own if match[2] in own else settings, match[1])), text
        )

    outs = [filled(out) for kind in ("outs", "metrics", "plots") for out in body.get(kind, [])]
    listed = [tuple(filled(entry) for entry in body.get(kind, [])) for kind in ("deps", "params")]
    return Stage(name, body["desc"], filled(body["cmd"]), listed[0], listed[1], tuple(outs))


def _value(settings: Any, key: str) -> Any:
    found = OmegaConf.select(settings, key)
    if found is None:
        raise SystemExit(f"{PIPELINE}: no value for ${{{key}}} in {params.PARAMS}: run `make params`")
    return found
