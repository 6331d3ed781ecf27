"""Plant canaries: rows with random secrets, which `safety` looks for in what was trained.

    python -m commands.canaries          writes raw/canaries/canaries.jsonl

A source in conf/data names them like any other. A release that was trained on them knows nonsense by heart: measure with them, and
train the release without.
"""

from pathlib import Path

from temper import extraction, params, records

OUT = Path("raw/canaries/canaries.jsonl")
SOURCE = (
    "{kind: file, id: raw/canaries/*.jsonl, revision: null, sha256: null, format: messages, files: [], columns: {}, "
    "licence: cc0-1.0}"
)


def main() -> None:
    found = extraction.planted(int(params.value("responses.canaries")))
    count = records.write(OUT, map(extraction.row, found))
    print(f"{OUT}: {count} canaries. Add this source to those of conf/data, train, and `make safety`:\n  - {SOURCE}")


if __name__ == "__main__":
    main()
