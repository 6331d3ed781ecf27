"""Serving speed: `make serve` beside the bare engine, settings for this CPU, speculation, llama.cpp's own loop, the start.

    python -m benchmarks.serve [--parts gateway settings speculation quants llama start] [--repeats 5] [--settings …]

Writes reports/benchmarks/serve.json after each part; a part whose figures are there by the same command is not measured again.
What a part compares runs in turn, `--repeats` times after a round of warming up; figures are medians. Requests are test rows of the
default job, so its models must be there: `make repro`.

gateway      Output tokens/s at 1, 8 and 32 at once through `make serve` as conf/ has it, and by the same engine with the same
             flags and no gateway, both up all the time. `unlogged` is `make serve` without its log, which scrubs what it keeps.
settings     vLLM as it starts when told no more than the model, beside one setting at a time, the flags of `make serve`, and all
             settings together that helped at 8 and 32; each a server of its own. `--settings default` measures those flags alone.
speculation  One request at a time, answers that end where the model ends them: without a draft, and with each of conf/bench. Greedy
             answers with a draft are held against the model's own choices.
quants       Exact answers that each released quant keeps, from reports/retention.
llama        Tokens/s of an answer from the GGUF through `make serve`, beside what llama-bench does (benchmarks/llama_bench.py),
             behind as many tokens of context.
start        Seconds from `make serve` to the first token of an answer, beside those of the bare engine.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import journal, serve_start
from benchmarks.train import Contenders, Figures, in_turn, median
from commands.serve import Served
from scripts.bench import Bench
from temper import api_server, cost, envs, load, lossless, metrics, params, recipe, variants
from temper.server import Endpoint

REPOSITORY = Path(__file__).resolve().parent.parent
OUT = REPOSITORY / "reports/benchmarks/serve.json"
ROWS = REPOSITORY / "data/mix/test.jsonl"
LOOPS = ((1, 12), (8, 48), (32, 96))  # callers, requests
ALONE = ((1, 24),)
MAX_TOKENS = 64
SEED = 17
HELPS = 1.02  # what a setting must gain to be taken into the combination
LLAMA = (512, 128)  # tokens of a prompt and of an answer, as llama-bench has them
TARGETS = {
    "gateway_times_bare": 0.97,
    "settings_times_default": 1.5,
    "speculation_times_plain": 1.3,
    "quants_exact_kept": 0.97,
    "llama_times_own": 0.97,
    "start_times_bare": 1.1,  # at most
}


@dataclass(frozen=True)
class Setting:
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


DEVELOPER = {"VLLM_SERVER_DEV_MODE": "1"}  # whose routes empty the prefix cache
SETTINGS = {
    "default": Setting(),
    "threads": Setting(environment={"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))))}),
    "intel_openmp": Setting(environment=api_server.intel_openmp(envs.path("serve"), {})),
    "eager": Setting(["--enforce-eager"]),
    "cache_1gb": Setting(["--kv-cache-memory-bytes", str(2**30)]),
    "sequences_32": Setting(["--max-num-seqs", "32"]),
    "batch_8192": Setting(["--max-num-batched-tokens", "8192"]),
    "batch_512": Setting(["--max-num-batched-tokens", "512"]),
    "no_prefix_caching": Setting(["--no-enable-prefix-caching"]),
    "block_32": Setting(["--block-size", "32"]),
    "float32": Setting(["--dtype", "float32"]),
}

SHOWN = ("tokens_per_second", "ttft_p50_ms", "e2e_p50_ms")

Values = dict[str, Any]


def main() -> None:
    arguments = parsed()
    os.chdir(REPOSITORY)
    if not ROWS.is_file():
        raise SystemExit(f"{ROWS}: the rows of the default job are missing: run `make repro` first")
    journal.run("benchmarks.serve", OUT, PARTS, TARGETS, arguments)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="of settings")
    return parser.parse_args()


def gateway(arguments: argparse.Namespace) -> Values:
    with serve_start.prepared([]) as served, folder() as place, ExitStack() as stack:
        up = {"ours": serve_start.ours([log(place)]), "bare": serve_start.bare(served)}
        up["unlogged"] = serve_start.ours(["serve.log.folder=null"])
        urls = {name: stack.enter_context(one).url for name, one in up.items()}
        found = client(urls, served.cfg.name, LOOPS, arguments.repeats)
    values = rates("gateway", found)
    times = {f"gateway_times_bare_{level}": ratio(found, "ours", "bare", level) for level, _ in LOOPS}
    unlogged = {f"gateway_unlogged_times_bare_{level}": ratio(found, "unlogged", "bare", level) for level, _ in LOOPS}
    return values | times | unlogged | {"gateway_times_bare": min(times.values())}


def settings(arguments: argparse.Namespace) -> Values:
    loops, others = LOOPS[1:], [name for name in arguments.settings if name != "default"]
    with serve_start.prepared([]) as served:
        measure = partial(one_server, served, loops)
        # Without another setting there is nothing to choose of.
        once = ["default", *others] if others else []
        first = in_turn({name: partial(measure, name, SETTINGS[name]) for name in once}, 1) if once else {}
        gains = {name: gain(first, name, "default", loops) for name in others}
        helpful = sorted((name for name in gains if gains[name] > HELPS), key=lambda name: gains[name])
        print(f"  together: {', '.join(helpful) or 'none'}", flush=True)
        contenders: Contenders = {name: partial(measure, name, SETTINGS[name]) for name in ("default", *helpful)}
        contenders["ours"] = partial(one_server, served, loops, "ours", None)
        if helpful:
            contenders["together"] = partial(measure, "together", together([SETTINGS[name] for name in helpful]))
        found = in_turn(contenders, arguments.repeats)
    best = max(found.keys() & {"ours", "together"}, key=lambda name: gain(found, name, "default", loops))
    times = {f"settings_times_default_{level}": ratio(found, best, "default", level) for level, _ in loops}
    about = {"settings_together": " ".join(helpful), "settings_best": best}
    alone = {f"settings_{name}_times_default_once": value for name, value in gains.items()}
    summed = {"settings_times_default": min(times.values())}
    return rates("settings", found) | starts("settings", found) | alone | times | about | summed


def speculation(arguments: argparse.Namespace) -> Values:
    sections = {name: params.load(f"bench.{name}", Bench) for name in variants.measured()}
    drafts = {name: (Path("models", one.model), one.speculation) for name, one in sections.items() if one.speculation}
    if not drafts:
        raise SystemExit("params.yaml: no section of bench has a draft: compose it with bench=default")
    with serve_start.prepared([]) as served, ExitStack() as stack:
        up = {"plain": serve_start.bare(served, environment=DEVELOPER)}
        for name, (folder_of, draft) in drafts.items():
            up[name] = serve_start.bare(served, draft.arguments(folder_of), DEVELOPER)
        urls = {name: stack.enter_context(one).url for name, one in up.items()}
        found = client(urls, served.cfg.name, ALONE, arguments.repeats, ends=True)
        chats = {"domain": load.prompts(load.rows(ROWS), 64, SEED)}
        held = {
            f"speculation_{name}_{key}": value
            for name, (_, draft) in drafts.items()
            for key, value in lossless.held(urls[name], served.cfg.name, chats, MAX_TOKENS, draft.tie).items()
        }
    times = {f"speculation_{name}_times_plain": ratio(found, name, "plain", 1) for name in drafts}
    best = max(drafts, key=lambda name: times[f"speculation_{name}_times_plain"])
    about = {"speculation_best": best, "speculation_lossless": held[f"speculation_{best}_lossless"]}
    summed = {"speculation_times_plain": times[f"speculation_{best}_times_plain"]}
    return rates("speculation", found) | held | times | about | summed


def quants(_: argparse.Namespace) -> Values:
    reports = {name: metrics.read(f"reports/retention/{name}.json") for name in recipe.load().formats}
    released = {name: report.get("exact_kept") for name, report in reports.items() if report["released"]}
    if not any(released.values()):
        raise SystemExit(
            "reports/retention: no released quant whose exact answers were judged: run `make retention` first"
        )
    withheld = {f"quants_{name}_withheld": report["withheld"] for name, report in reports.items() if report["withheld"]}
    kept = {f"quants_{name}_exact_kept": value for name, value in released.items() if value is not None}
    return kept | withheld | {"quants_exact_kept": min(kept.values())}


def llama(arguments: argparse.Namespace) -> Values:
    prompt, generated = LLAMA
    with serve_start.prepared(["serve=llama.cpp"]) as served, folder() as place:
        with serve_start.ours(["serve=llama.cpp", log(place)]) as endpoint:
            urls = {"ours": endpoint.url}
            # With an end of their own: to look for one that must not come costs time of its own.
            answers = client(urls, served.cfg.name, ALONE, arguments.repeats, max_tokens=generated, ends=True)["ours"]
        depth = round(median(answers, "c1_prompt_tokens"))
        numbers = [served.runtime["threads"], prompt, generated, depth, arguments.repeats]
        command = [envs.python("quantize"), "-m", "benchmarks.llama_bench", served.model, *numbers]
        own = json.loads(said([str(part) for part in command]))
    rate = 1000 / median(answers, "c1_tpot_mean_ms")
    values = {"llama_ours_tokens_per_second": rate, "llama_own_tokens_per_second": statistics.median(own["tg"])}
    values |= {"llama_own_prompt_tokens_per_second": statistics.median(own["pp"]), "llama_depth": depth}
    values["llama_ours_prompt_tokens_per_second"] = 1000 * depth / median(answers, "c1_ttft_p50_ms")
    return values | {"llama_times_own": rate / values["llama_own_tokens_per_second"]}


def start(arguments: argparse.Namespace) -> Values:
    with serve_start.prepared([]) as served, folder() as place:
        started = partial(serve_start.ours, [log(place)], by_make=True)
        contenders: Contenders = {
            "ours": partial(first_token, "ours", started, served.cfg.name),
            "bare": partial(first_token, "bare", partial(serve_start.bare, served), served.cfg.name),
        }
        found = in_turn(contenders, arguments.repeats)
    seconds = {name: median(runs, "first_token_seconds") for name, runs in found.items()}
    values = {f"start_{name}_seconds": value for name, value in seconds.items()}
    return values | {"start_times_bare": seconds["ours"] / seconds["bare"]}


def one_server(served: Served, loops: Sequence[tuple[int, int]], name: str, setting: Setting | None) -> Figures:
    """A server of its own, by a setting, or with the flags of `make serve` for None."""
    if setting is None:
        endpoint = serve_start.bare(served, environment=DEVELOPER)
    else:
        endpoint = serve_start.by_default(served, setting.arguments, setting.environment | DEVELOPER)
    with endpoint:
        seen = client({name: endpoint.url}, served.cfg.name, loops, 1)[name][0]
        figures = {key: value for key, value in seen.items() if key.endswith(SHOWN)}
        figures |= {"start_seconds": endpoint.start_seconds, "peak_memory_gb": endpoint.peak_memory_gb()}
    return {name: figures}


def together(chosen: list[Setting]) -> Setting:
    """All of them; of two values of one option, the later."""
    arguments = [part for one in chosen for part in one.arguments]
    environment = {key: value for one in chosen for key, value in one.environment.items()}
    return Setting(arguments, environment)


def client(
    urls: dict[str, str],
    model: str,
    loops: Sequence[tuple[int, int]],
    repeats: int,
    *,
    max_tokens: int = MAX_TOKENS,
    ends: bool = False,
) -> dict[str, list[dict[str, float]]]:
    """What vLLM's benchmark client saw of each server, a repeat a run; it is in an environment of its own."""
    given: Values = {
        "contenders": {name: {"url": url, "model": model} for name, url in urls.items()},
        "rows": str(ROWS),
    }
    given |= {"loops": loops, "repeats": repeats, "max_tokens": max_tokens, "ends": ends, "seed": SEED}
    with folder() as place:
        (place / "settings.json").write_text(json.dumps(given))
        files = [str(place / name) for name in ("settings.json", "found.json")]
        print(said([str(envs.python("serve")), "-m", "benchmarks.serve_client", *files]), end="", flush=True)
        found: dict[str, list[dict[str, float]]] = json.loads((place / "found.json").read_text())
    return found


def first_token(name: str, endpoint: Callable[[], Endpoint], model: str) -> Figures:
    """Seconds from the start of a server to the first piece of an answer."""
    import httpx

    asked = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True}
    with (
        endpoint() as server_up,
        httpx.Client(base_url=server_up.url, timeout=120, trust_env=False) as http,
        http.stream("POST", "/v1/chat/completions", json=asked) as reply,
    ):
        if reply.status_code != 200:
            raise SystemExit(f"benchmarks.serve: {name}: status {reply.status_code} for a first request")
        next(line for line in reply.iter_lines() if line.startswith("data: "))
        seconds = time.monotonic() - server_up.started
    return {name: {"first_token_seconds": seconds, "start_seconds": server_up.start_seconds}}


def rates(part: str, found: dict[str, list[dict[str, float]]]) -> Values:
    """The median rate of each contender at each level, its slowest and fastest run, and latencies."""
    values: Values = {}
    for name, runs in found.items():
        for level in cost.levels(runs[0]):
            every = [run[f"c{level}_tokens_per_second"] for run in runs]
            key = f"{part}_{name}_c{level}_tokens_per_second"
            values |= {key: statistics.median(every), f"{key}_least": min(every), f"{key}_most": max(every)}
            for latency in SHOWN[1:]:
                values[f"{part}_{name}_c{level}_{latency}"] = median(runs, f"c{level}_{latency}")
    return values


def starts(part: str, found: dict[str, list[dict[str, float]]]) -> Values:
    return {f"{part}_{name}_start_seconds": median(runs, "start_seconds") for name, runs in found.items()}


def ratio(found: dict[str, list[dict[str, float]]], one: str, other: str, level: int) -> float:
    return median(found[one], f"c{level}_tokens_per_second") / median(found[other], f"c{level}_tokens_per_second")


def gain(found: dict[str, list[dict[str, float]]], one: str, other: str, loops: Sequence[tuple[int, int]]) -> float:
    """Over all levels: the geometric mean of the ratios."""
    return statistics.geometric_mean(ratio(found, one, other, level) for level, _ in loops)


def said(command: list[str]) -> str:
    """What a command prints; exits with its last words when it fails."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks.serve: {' '.join(command)}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def log(place: Path) -> str:
    """The override that keeps records of measured requests out of the repository's own log."""
    return f"serve.log.folder={place / 'logs'}"


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as name:
        yield Path(name)


PARTS: dict[str, Callable[[argparse.Namespace], Values]] = {
    "gateway": gateway,
    "settings": settings,
    "speculation": speculation,
    "quants": quants,
    "llama": llama,
    "start": start,
}


if __name__ == "__main__":
    main()
