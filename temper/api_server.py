"""vLLM's OpenAI server, bound to the life of whoever started it; so is every worker that it forks or spawns.

python -m temper.api_server --model FOLDER --port N …     the arguments of `vllm serve`
"""

import os

from temper import stage

STARTER = "TEMPER_STARTER"
"""The process that spawns a worker, in the worker's environment: it may be gone by the time the worker asks who its parent is."""


def _be_starter() -> None:
    os.environ[STARTER] = str(os.getpid())


# A spawned worker imports the main module of its parent, under the second name, before it works.
if __name__ in ("__main__", "__mp_main__"):
    stage.bind_to_parent(int(os.environ[STARTER]) if __name__ == "__mp_main__" else None)
    _be_starter()
    os.register_at_fork(after_in_child=_be_starter)

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
