"""The log's end of the pipe that `commands.serve` opens: scrub what arrives with the repository's own masking, then keep it.

    python -m commands.serve_log PARAMS     the composed file; records on stdin

It ends once nobody writes any more, so that what the server said last is kept too.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from scripts import pii
from temper import params, presidio, request_log, serving
from temper.langfuse import Sender
from temper.masking import Allowed
from temper.records import Row
from temper.request_log import Files

NICENESS = 10  # the engine goes first


def main(file: Path) -> None:
    # The server is told to end, and the log ends after it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    cfg = serving.load(file)
    settings = masking(cfg)
    allowed = Allowed(tuple(settings.allow), tuple(settings.allow_patterns))
    files = Files(Path(cfg.log.folder), cfg.log.max_bytes, cfg.log.max_files) if cfg.log.folder else None
    sender = Sender(cfg.langfuse) if cfg.langfuse.host else None
    stand_in = pii.stand_in(settings)
    scrub = partial(request_log.scrubbed, search=pii.search(settings), allowed=allowed, stand_in=stand_in)
    for batch in request_log.batches(sys.stdin.fileno()):
        found = request_log.surely(batch, scrub)
        for record in found:
            if reason := record.get("unscrubbed"):
                print(
                    f"{record['id']}: kept without its texts, which could not be scrubbed ({reason})", file=sys.stderr
                )
        if files:
            kept(files, found)
        for record in found if sender else ():
            assert sender
            sender.put(record)
    if sender:
        sender.close()


def kept(files: Files, found: list[Row]) -> None:
    try:
        files.write(found)
    except OSError as error:
        raise SystemExit(f"serve.log.folder: {files.folder}: {error.strerror}: free space or permissions") from None


def masking(cfg: serving.Serve) -> pii.Pii:
    """What is replaced; exits naming what does not fit. `commands.serve` then ends too, before a request is answered."""
    place = DictConfig(OmegaConf.create({"serve": {"log": {"pii": cfg.log.pii}}}))
    settings = params.fitted(place, "serve.log.pii", pii.Pii, "conf/serve")
    Allowed(tuple(settings.allow), tuple(settings.allow_patterns)).check()
    pii.stand_in(settings)
    presidio.check(pii.search(settings))
    return settings


if __name__ == "__main__":
    main(Path(sys.argv[1]))
