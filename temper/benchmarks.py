"""Public benchmarks, out of their wheels, as the items that training data is checked against."""

from dataclasses import dataclass

from temper import records, wheels
from temper.ngrams import Item


@dataclass
class Benchmark:
    """JSON lines in a wheel: `file` inside it, `field` the text of an item; `name` goes into evidence and metrics."""

    name: str
    id: str
    revision: str
    sha256: str
    file: str
    field: str
    licence: str


def items(benchmark: Benchmark) -> list[Item]:
    """Every item, named by its `task_id` or `id`, else by its line."""
    wheel = wheels.fetch(benchmark.id, benchmark.revision, benchmark.sha256)
    lines = [line for line in wheels.read(wheel, benchmark.file).splitlines() if line.strip()]
    rows = [records.parse(line, f"{benchmark.file}:{number}") for number, line in enumerate(lines, start=1)]
    if any(not isinstance(row.get(benchmark.field), str) for row in rows):
        raise SystemExit(
            f"{benchmark.file}: items without the text field '{benchmark.field}': correct it in conf/contamination"
        )
    return [
        Item(benchmark.name, str(row.get("task_id", row.get("id", number))), row[benchmark.field])
        for number, row in enumerate(rows, start=1)
    ]
