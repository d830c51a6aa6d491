"""`python -m fusetune.runtime FOLDER TABLE -o OUT`: predict a table with an exported model, without torch."""

from __future__ import annotations

import argparse
import json
import sys

from fusetune.errors import FusetuneError, UserError
from fusetune.runtime.model import load
from fusetune.runtime.output import check_ending


def main(arguments: list[str] | None = None) -> int:
    """Predict a table; return the exit code: 0, 2 for the user's mistake, 1 for others."""
    parser = argparse.ArgumentParser(
        prog="python -m fusetune.runtime", description="Predict a table with an exported model."
    )
    parser.add_argument("folder", help="written by fusetune export RUN --to onnx")
    parser.add_argument("table", help="a CSV, JSON Lines or Parquet file")
    parser.add_argument("-o", "--out", help="file to write: .csv, .jsonl or .parquet; else JSON Lines are printed")
    parser.add_argument("--variant", help="float32, float16 or int8")
    parser.add_argument("--threads", type=int, help="of onnxruntime")
    parser.add_argument("--on-bad-cell", choices=["mask", "reject"], default="mask")
    parser.add_argument("--missing-columns", nargs="*", default=[], help="input columns that the table may lack")
    given = parser.parse_args(arguments)
    try:
        if given.out is not None:
            check_ending(given.out)
        model = load(given.folder, given.variant, threads=given.threads)
        found = model.predict(given.table, on_bad_cell=given.on_bad_cell, missing_columns=given.missing_columns)
        if given.out is None:
            sys.stdout.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows())
        else:
            found.write(given.out)
            print(f"{len(found)} rows, {found.num_errors} of them with an error: {given.out}", file=sys.stderr)
    except FusetuneError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
