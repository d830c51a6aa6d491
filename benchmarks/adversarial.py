"""Accuracy under attack on film reviews after plain and after adversarial tuning: one row a method, mean over seeds.

python benchmarks/adversarial.py                                  # 2,000 train rows, test rows, seed 0
python benchmarks/adversarial.py --seeds 3 --out runs/adversarial # seeds 0 to 2, figures kept
python benchmarks/adversarial.py plain fgm --epsilon 0.03 --on val --set trainer.epochs=4

Settings are those of quality/sst2.yaml. Every model is attacked by FGM and by PGD of five steps, within the same ball
of word embeddings: ε relative to the pretrained embeddings. Choose on validation rows (--on val).
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import fusetune as ft
from fusetune.config.attack import AttackConfig
from fusetune.deploy.tuned import read_examples
from fusetune.evaluation.measure.attack import Attack

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "text_sst2"
ATTACK_STEPS = 5


def methods(epsilon: float) -> dict[str, list[str]]:
    """The settings of each method, by its name."""
    return {
        "plain": [],
        "fgm": [f"trainer.adversarial={{name: fgm, epsilon: {epsilon}}}"],
        "pgd": [f"trainer.adversarial={{name: pgd, epsilon: {epsilon}}}"],
        "freelb": [f"trainer.adversarial={{name: freelb, epsilon: {epsilon}}}"],
        "vat": [f"objectives={{vat: {{epsilon: {epsilon}}}}}"],
    }


def some_rows(num: int, folder: Path) -> Path:
    """The train rows, or a random choice of so many."""
    with (DATA / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    path = folder / "train.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows[:num])
    return path


def run(name: str, seed: int, train: Path, on: Path, epsilon: float, overrides: list[str]) -> dict[str, Any]:
    """One fit, and the accuracy of its models as they are and under attack."""
    folder = Path(tempfile.mkdtemp(prefix="fusetune-adversarial-"))
    tuned = ft.fit(
        train,
        val=DATA / "dev.csv",
        test=on,
        target="label",
        out=folder / "model",
        config=HERE / "quality" / "sst2.yaml",
        overrides=[
            f"seed={seed}",
            "report={alone: none, errors: 0}",
            f"report.attack={{name: fgm, epsilon: {epsilon}}}",
            *methods(epsilon)[name],
            *overrides,
        ],
        progress=False,
    )
    assert tuned.results is not None
    result = tuned.results.tasks[0]
    figures = {system.name: result.main(system) for system in result.systems}
    start = time.perf_counter()
    stronger = pgd(tuned, on, epsilon)
    return {
        "name": name,
        "seed": seed,
        "rows": result.rows,
        "tune_seconds": sum(phase.seconds for phase in tuned.results.phases if phase.name == "tune"),
        "attack_seconds": time.perf_counter() - start,
        "clean": figures["tuned"].value,
        "fgm": figures["tuned, attacked"].value,
        "pgd": stronger,
        "before": {"clean": figures["frozen probe"].value, "fgm": figures["frozen probe, attacked"].value},
    }


def pgd(tuned: Any, on: Path, epsilon: float) -> float:
    """The tuned model's accuracy under PGD, in the ball that the report's attack used."""
    bundle, task = tuned.bundle, tuned.bundle.tasks["label"]
    examples = read_examples(bundle, on, targets=True)
    rows = examples.labelled("label")
    attack = Attack(bundle.model, examples, AttackConfig(name="pgd", epsilon=epsilon, steps=ATTACK_STEPS))
    attack.units = tuned.results.tasks[0].attack.units
    scores = task.answers(attack.logits(bundle.model, "label", task, examples, rows))
    truth = task.truth([examples.targets["label"][row] for row in rows])
    return float(task.metrics(scores, truth)["accuracy"])


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: per method the mean over seeds with the range, and what differs from plain tuning."""

    def cell(mine: list[dict[str, Any]], figure: str) -> str:
        values = [100 * run[figure] for run in mine]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    lines = [
        f"| tuning | clean | under FGM | under PGD-{ATTACK_STEPS} | clean, FGM against plain | seconds |",
        "|---" * 6 + "|",
    ]
    before = [run["before"] for run in runs]
    lines.append(f"| none (frozen probe) | {cell(before, 'clean')} | {cell(before, 'fgm')} | | | |")
    plain = [run for run in runs if run["name"] == "plain"]
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        gaps = ""
        if plain and name != "plain":
            means = {
                figure: 100 * (statistics.mean(r[figure] for r in mine) - statistics.mean(r[figure] for r in plain))
                for figure in ("clean", "fgm")
            }
            gaps = f"{means['clean']:+.1f}, {means['fgm']:+.1f}"
        seconds = statistics.mean(run["tune_seconds"] for run in mine)
        figures = " | ".join(cell(mine, figure) for figure in ("clean", "fgm", "pgd"))
        lines.append(f"| {name} | {figures} | {gaps} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(methods(0)), help=f"of {', '.join(methods(0))}")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N - 1")
    parser.add_argument("--rows", type=int, default=2000, help="train rows; 6,920 are all")
    parser.add_argument("--epsilon", type=float, default=0.02, help="of training and of attacks")
    parser.add_argument("--on", choices=["val", "test"], default="test", help="the rows that are attacked")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for all")
    parser.add_argument("--out", type=Path, help="write the figures here")
    asked = parser.parse_args()
    train = some_rows(asked.rows, Path(tempfile.mkdtemp(prefix="fusetune-adversarial-")))
    on = DATA / {"val": "dev.csv", "test": "test.csv"}[asked.on]
    runs = []
    for seed in range(asked.seeds):
        for name in asked.names:
            runs.append(run(name, seed, train, on, asked.epsilon, asked.set))
            print(json.dumps(runs[-1]), flush=True)
            if asked.out:
                asked.out.mkdir(parents=True, exist_ok=True)
                (asked.out / "adversarial.json").write_text(json.dumps(runs, indent=1))
    print(table(runs))


if __name__ == "__main__":
    main()
