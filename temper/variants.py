"""The servers that stage `bench` measures: vLLM with bf16 or int4 weights, with or without a draft, and llama.cpp.

Each is a section `bench.<name>`; `served` names those that the recipe makes the weights of.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import envs, params, server
from temper.server import Endpoint
from temper.speculation import EAGLE3, Speculation

ENGINES = ("vllm", "llama.cpp")
# By name: an import would make all of the gateway, which is not measured here, decide whether the figures are stale.
LLAMA_APP = "temper.llama_app"
GGUF = "model.gguf"


@dataclass
class Served:
    engine: str
    model: str
    """Folder of models/: weights, or for EAGLE3 the head of the release."""
    dtype: str | None
    """Of weights and sums in vLLM; null where the file says."""
    sequences: int
    """Requests that the engine answers at a time; more wait."""
    context: int | None
    """Tokens of a prompt and its answer together; null takes the model's own."""
    speculation: Speculation | None


def measured(path: Path = params.PARAMS) -> list[str]:
    """The names of those that are measured by the settings in `path`."""
    return [str(name) for name in params.tree(path).served]


def check(served: Served, place: str) -> None:
    """Exit naming what makes no server."""
    if served.engine not in ENGINES:
        raise SystemExit(f"{place}: engine '{served.engine}', expected {' or '.join(ENGINES)}: correct conf/bench")
    if served.engine != "vllm" and (served.speculation or served.sequences != 1):
        raise SystemExit(f"{place}: {served.engine} answers one request at a time, without a draft: correct conf/bench")
    if served.speculation:
        served.speculation.check(place)


def endpoint(served: Served, folder: Path, release: Path, seed: int, runtime: dict[str, Any]) -> Endpoint:
    """The server of what lies in `folder`: weights, or the EAGLE3 head of `release`."""
    port, model = server.chosen_port(runtime["serve_port"]), weights(served, folder, release)
    arguments = _llama if served.engine == "llama.cpp" else _vllm
    command = [*arguments(served, model, seed, runtime), "--host", server.HOST, "--port", str(port)]
    command += served.speculation.arguments(folder) if served.speculation else []
    # The development routes are one that empties the prefix cache, without which repeats would find their prompts computed.
    return Endpoint(command, port, server.environment(runtime) | {"VLLM_SERVER_DEV_MODE": "1"})


def weights(served: Served, folder: Path, release: Path) -> Path:
    """The folder of the model that answers; the server knows it by the folder's name."""
    return release if served.speculation and served.speculation.method == EAGLE3 else folder


def _vllm(served: Served, model: Path, seed: int, runtime: dict[str, Any]) -> list[str]:
    if not (model / "config.json").is_file():
        raise SystemExit(f"{model}: no model: run `make repro`, which writes it")
    command = [str(envs.python("serve")), "-m", "temper.api_server"]
    command += server.arguments(model, str(served.dtype), seed, runtime)
    command += ["--max-num-seqs", str(served.sequences)]
    return command + (["--max-model-len", str(served.context)] if served.context else [])


def _llama(served: Served, model: Path, _seed: int, runtime: dict[str, Any]) -> list[str]:
    file = model / GGUF
    if not file.is_file():
        raise SystemExit(f"{file}: no model: run `make quantize`, which writes it")
    options = {
        "--model": file,
        "--served-model-name": model.name,
        "--worker": envs.python("quantize"),
        "--threads": runtime["threads"],
        "--context": served.context or 0,
        "--max-tokens": served.context or 2**31 - 1,
        "--drain": 1,
    }
    command = [str(envs.python("serve")), "-m", LLAMA_APP, "--bare"]
    return command + [str(part) for pair in options.items() for part in pair]
