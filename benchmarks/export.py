"""An exported model beside the tuned one: differences, metrics, size, and processor time from cells to answers.

    OMP_NUM_THREADS=1 python benchmarks/export.py runs/sst2 ../shared/data/text_sst2/dev.csv --variants int8

Processor time does not depend on what else runs on the machine, as elapsed time does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fusetune as ft
import fusetune.runtime
from fusetune.deploy.export.onnx import save_onnx


def milliseconds(call: Callable[[], Any], rounds: int = 3) -> float:
    """Return the least processor time of several calls."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def measured(predict: Callable[[Any], Any], table: Any, singles: list[Any]) -> dict[str, float]:
    predict(singles[0])
    alone = [milliseconds(lambda one=one: predict(one), 1) for one in singles]
    per_row = milliseconds(lambda: predict(table)) / len(table)
    return {"ms_per_row": per_row, **{f"single_p{p}_ms": float(np.percentile(alone, p)) for p in (50, 95)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of fusetune fit")
    parser.add_argument("table", help="labelled rows")
    parser.add_argument("--variants", nargs="*", default=["int8"])
    parser.add_argument("--rows", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tuned = ft.load(given.run)
    table = tuned.read(given.table)
    table = table.select(np.arange(min(given.rows, len(table))))
    singles = [table.select([index]) for index in range(min(50, len(table)))]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "exported"
        report = save_onnx(tuned.bundle, out, variants=given.variants, check=table, rows=given.rows)
        print("torch", json.dumps(report["eager"]["metrics"] | measured(tuned.predict, table, singles)))
        for name, result in report["variants"].items():
            model = fusetune.runtime.load(out, name, threads=1)
            kept = {key: result[key] for key in ("size_bytes", "largest_difference", "agreement")}
            print(name, json.dumps(kept | result["metrics"] | measured(model.predict, table, singles)))


if __name__ == "__main__":
    main()
