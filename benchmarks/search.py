"""What a search costs against the size of the catalogue: build time, memory, latency and recall.

python benchmarks/search.py                                    # 10^3, 10^4 and 10^5 vectors
python benchmarks/search.py --sizes 1000000 --dims 384         # the largest: minutes, up to 6 GB
python benchmarks/search.py --sizes 10000 --dtypes int8 --json

Vectors are drawn from a mixture of Gaussians and scaled to unit length, about 100 in a cluster; queries are drawn from
the same mixture and are none of the catalogue. Each line is a process of its own. The index is that of
`fusetune index`, filled in parts of 8,192 rows as there. Recall is the share of the exact top 10 of the float32
vectors. A latency is that of one query alone and its top 10. Memory is what the index adds to the process; the peak
includes everything. OMP_NUM_THREADS sets the threads; on a machine that is busy otherwise, take 1.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SIZES, DIMS, DTYPES = (1_000, 10_000, 100_000), (128, 384), ("float32", "float16", "int8")
PART, PER_CLUSTER, SPREAD, K = 8192, 100, 0.8, 10
COLUMNS = ("vectors", "dim", "dtype", "kind", "build_s", "memory_mb", "peak_mb", "p50_ms", "p95_ms", "recall", "effort")


class Mixture:
    """Clustered vectors of unit length; the same seed gives the same ones."""

    def __init__(self, size: int, dim: int) -> None:
        rng = np.random.default_rng(0)
        centres = rng.normal(size=(max(size // PER_CLUSTER, 8), dim)).astype(np.float32)
        self.size, self.centres = size, centres / np.linalg.norm(centres, axis=1, keepdims=True)

    def draw(self, num: int, seed: int) -> np.ndarray:
        """Return vectors, (num, dim) float32: a centre and noise of `SPREAD` times its length."""
        rng = np.random.default_rng([1, seed])
        dim = self.centres.shape[1]
        noise = rng.standard_normal((num, dim), dtype=np.float32) * np.float32(SPREAD / dim**0.5)
        values = self.centres[rng.integers(0, len(self.centres), num)] + noise
        return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))

    def parts(self) -> Iterator[np.ndarray]:
        """Yield the catalogue in parts."""
        for start in range(0, self.size, PART):
            yield self.draw(min(PART, self.size - start), start)


def memory_mb() -> float:
    """Return the memory that the process has now, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def exact_top(mixture: Mixture, queries: np.ndarray) -> np.ndarray:
    """Return the positions of the top 10 of the float32 vectors, (queries, 10)."""
    best = np.full((len(queries), K), -np.inf, dtype=np.float32)
    where = np.full((len(queries), K), -1)
    for number, part in enumerate(mixture.parts()):
        scores = np.concatenate([best, queries @ part.T], 1)
        positions = np.concatenate(
            [where, np.broadcast_to(np.arange(len(part)) + number * PART, (len(queries), len(part)))], 1
        )
        top = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        best, where = np.take_along_axis(scores, top, 1), np.take_along_axis(positions, top, 1)
    return where


def measure(size: int, dim: int, dtype: str, kind: str, num_queries: int) -> dict[str, object]:
    """Build one index and search it."""
    from fusetune.deploy.search import vectors

    vectors.EXACT = 0  # the graph is followed at any size
    mixture = Mixture(size, dim)
    queries = mixture.draw(num_queries, 10**9)
    wanted = exact_top(mixture, queries)
    if kind == "graph":
        import faiss  # noqa: F401 - its own memory is not the index's
    index = vectors.VectorIndex(dim, dtype=dtype, graph=kind == "graph")
    before, start, drawing = memory_mb(), time.perf_counter(), 0.0
    parts = mixture.parts()
    while True:
        drawn = time.perf_counter()
        part = next(parts, None)
        drawing += time.perf_counter() - drawn
        if part is None:
            break
        index.add(part)
    index.settle()
    build, memory = time.perf_counter() - start - drawing, memory_mb() - before
    found, seconds = [], []
    for query in queries[:3]:
        index.search(query[None], K)
    for query in queries:
        start = time.perf_counter()
        near, _ = index.search(query[None], K)
        seconds.append(time.perf_counter() - start)
        found.append(near[0])
    recall = float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, wanted, strict=True)]))
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    effort = index.graph.effort if index.graph is not None else 0
    values = (size, dim, dtype, kind, build, memory, peak, p50, p95, recall, effort)
    return dict(zip(COLUMNS, values, strict=True))


def line(row: dict[str, object]) -> str:
    """Return a measurement as a line of a Markdown table."""
    formats = ("{:,}", "{}", "{}", "{}", "{:.1f}", "{:,.0f}", "{:,.0f}", "{:.2f}", "{:.2f}", "{:.3f}", "{}")
    return "| " + " | ".join(f.format(row[name]) for f, name in zip(formats, COLUMNS, strict=True)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--kinds", nargs="+", default=["exact", "graph"], choices=["exact", "graph"])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print JSON lines in place of a table")
    parser.add_argument("--single", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.single:
        row = measure(asked.sizes[0], asked.dims[0], asked.dtypes[0], asked.kinds[0], asked.queries)
        print(json.dumps(row))
        return
    if not asked.json:
        print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS), flush=True)
    for size in asked.sizes:
        for dim in asked.dims:
            for dtype in asked.dtypes:
                for kind in asked.kinds:
                    options = ["--sizes", size, "--dims", dim, "--dtypes", dtype, "--kinds", kind]
                    command = [
                        sys.executable,
                        __file__,
                        "--single",
                        *map(str, options),
                        "--queries",
                        str(asked.queries),
                    ]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        sys.exit(done.stderr)
                    print(done.stdout.strip() if asked.json else line(json.loads(done.stdout)), flush=True)


if __name__ == "__main__":
    main()
