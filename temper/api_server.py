"""vLLM's OpenAI server, bound to the life of whoever started it; so is every worker that it forks or spawns.

python -m temper.api_server --model FOLDER --port N …     the arguments of `vllm serve`
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from temper import stage

STARTER = "TEMPER_STARTER"
"""The process that spawns a worker, in the worker's environment: it may be gone by the time the worker asks who its parent is."""
PRELOADED = "LD_PRELOAD"
OPENMP = ("libomp", "libgomp", "libiomp")


def intel_openmp(prefix: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """What has vLLM's engine on a CPU run on Intel's OpenMP, where `prefix` has it and `environment` preloads no other.

    vLLM takes GNU's, whose waiting threads keep from two cores what the rest of the server needs of them; Intel's it has sleep
    after 5 ms. `make bench-serve` measures it (settings, intel_openmp).
    """
    library, preloaded = prefix / "lib/libiomp5.so", environment.get(PRELOADED, "")
    if not library.is_file() or any(name in preloaded for name in OPENMP):
        return {}
    return {PRELOADED: ":".join(filter(None, [str(library), preloaded]))}


def _be_starter() -> None:
    os.environ[STARTER] = str(os.getpid())


# A spawned worker imports the main module of its parent, under the second name, before it works.
if __name__ in ("__main__", "__mp_main__"):
    stage.bind_to_parent(int(os.environ[STARTER]) if __name__ == "__mp_main__" else None)
    _be_starter()
    os.register_at_fork(after_in_child=_be_starter)

if __name__ == "__main__":
    # The engine is a process that is spawned, so that what this one has in its environment counts there from the start.
    os.environ.update(intel_openmp(Path(sys.prefix), os.environ))

    from vllm.entrypoints.launchers.api_server.entry import main

    main()
