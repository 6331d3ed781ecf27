"""`dvc plots show` in a clone: every curve that a run leaves, point by point."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_dvc_plots_show_draws_every_curve(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    command = [sys.executable, "-m", "dvc", "plots", "show", "--json", "--out", str(tmp_path / "plots")]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout)
    assert not shown.get("errors")
    defined = yaml.safe_load((clone / "dvc.yaml").read_text())["plots"]
    assert len(defined) > 3
    for title, plot in ((title, of) for one in defined for title, of in one.items()):
        points = [point for part in shown["data"][title] for point in part["content"]["data"]["values"]]
        # Of several curves in one picture DVC puts the values into a column of its own, and says whose each is.
        several = "dvc_inferred_y_value" in points[0]
        for path, columns in plot["y"].items():
            rows = list(csv.DictReader((clone / path).open()))
            for column in [columns] if isinstance(columns, str) else columns:
                curve = [(row[plot["x"]], row[column]) for row in rows if row[column]]
                own = [
                    one
                    for one in points
                    if one.get("field", column) == column and path.endswith(one.get("filename", path))
                ]
                drawn = {(one[plot["x"]], one["dvc_inferred_y_value" if several else column]) for one in own}
                assert curve, f"{path}: nothing in {column}"
                assert set(curve) <= drawn, title
