"""Compares the frozen probe with simple models on the same rows: it should be behind none of them.

python benchmarks/floors.py                         # all tables, at most 1,200 train rows each
python benchmarks/floors.py trec sick_relatedness   # two of them
python benchmarks/floors.py wine --tuned            # the tuned model beside the probe

Every system learns from the train rows and chooses its penalty or number of trees on the validation rows; test rows
only measure. The floors are: logistic (for numbers ridge) regression on tf-idf of words and on one-hot categories with
standardised numbers, LightGBM on the raw columns, and logistic or ridge regression on the frozen encoders' vectors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack
from sklearn import datasets
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import fusetune as ft
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.deploy.tuned import read_examples
from fusetune.inference.features import fill_features
from fusetune.training.probes.probe import vectors

DATA = Path(__file__).parents[2] / "shared" / "data"
MODELS = Path(__file__).parents[2] / "shared" / "models"
SPLITS = ("train", "val", "test")
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


@dataclass
class Data:
    """A table with its target.

    Attributes:
        frames: of "train", "val" and "test".
        target: the column to predict.
        text, category, number: the columns as the floors read them.
        config: further settings of the fit.
    """

    frames: dict[str, pd.DataFrame]
    target: str
    text: list[str] = field(default_factory=list)
    category: list[str] = field(default_factory=list)
    number: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> bool:
        """Whether the target is a class."""
        return not pd.api.types.is_float_dtype(self.frames["train"][self.target])

    def truth(self, split: str) -> np.ndarray:
        """A split's targets."""
        values = self.frames[split][self.target]
        return values.astype(str).to_numpy() if self.classes else values.to_numpy(float)


def split_frame(frame: pd.DataFrame, rows: int, *, seed: int = 0) -> dict[str, pd.DataFrame]:
    """At most `rows` train rows of a shuffled table, a fifth of the table for validation and a quarter for the test."""
    frame = frame.sample(frac=1, random_state=seed).reset_index(drop=True)
    test, val = frame.iloc[: len(frame) // 4], frame.iloc[len(frame) // 4 : len(frame) // 4 + len(frame) // 5]
    return {"train": frame.iloc[len(test) + len(val) :][:rows], "val": val[:rows], "test": test[:1000]}


def files(folder: str, rows: int, columns: list[str], *names: str) -> dict[str, pd.DataFrame]:
    """The columns of CSV files, shuffled; where there is no validation file, a fifth of the train rows is one."""
    read = [pd.read_csv(DATA / folder / f"{name}.csv")[columns].dropna() for name in names]
    read = [frame.sample(frac=1, random_state=0).reset_index(drop=True) for frame in read]
    if len(read) == 2:
        cut = len(read[0]) // 5
        read = [read[0].iloc[cut:], read[0].iloc[:cut], read[1]]
    train, val, test = read
    return {"train": train[:rows], "val": val[: max(rows // 3, 300)], "test": test[:1000]}


def sklearn_table(load: Callable[..., Any], rows: int, *, classes: bool) -> Data:
    """One of scikit-learn's tables."""
    frame = load(as_frame=True).frame
    frame["target"] = frame["target"].map(lambda value: f"c{value:g}") if classes else frame["target"].astype(float)
    columns = [name for name in frame if name != "target"]
    return Data(split_frame(frame, rows), "target", number=columns)


def prices(rows: int) -> Data:
    """A price that follows from a postal code (an unordered effect a code), a category and two numbers, with noise."""
    rng = np.random.default_rng(0)
    codes = rng.choice(np.arange(10_000, 99_999), 40, replace=False)
    effect = dict(zip(codes, rng.normal(0, 40, 40), strict=True))
    num = 2400
    frame = pd.DataFrame(
        {
            "postal_code": rng.choice(codes, num),
            "kind": rng.choice(["flat", "house", "studio"], num),
            "size": rng.uniform(20, 150, num).round(1),
            "year": rng.integers(1900, 2020, num),
        }
    )
    base = (
        frame["postal_code"].map(effect)
        + frame["size"] * 0.8
        + frame["kind"].map({"flat": 0, "house": 30, "studio": -10})
    )
    frame["price"] = (100 + base + rng.normal(0, 15, num)).astype(float).round(2)
    return Data(split_frame(frame, rows), "price", category=["postal_code", "kind"], number=["size", "year"])


def prices_unnamed(rows: int) -> Data:
    """The prices with the postal code under a name that says nothing of codes."""
    data = prices(rows)
    data.frames = {split: frame.rename(columns={"postal_code": "area"}) for split, frame in data.frames.items()}
    data.category = ["area", "kind"]
    return data


def noisy_audio(rows: int) -> Data:
    """Recordings with six numbers that tell nothing, one of them a speaker's id."""
    rng = np.random.default_rng(0)
    data = esc10(rows)
    for frame in data.frames.values():
        for place in range(5):
            frame[f"x{place}"] = rng.normal(size=len(frame)).round(3)
        frame["speaker"] = rng.integers(0, 8, len(frame))
    data.number, data.category = [f"x{place}" for place in range(5)], ["speaker"]
    return data


def esc10(rows: int) -> Data:
    """Environmental sounds, fold 5 the test and fold 4 the validation rows."""
    frame = pd.read_csv(DATA / "esc10" / "esc10.csv")
    frame["audio"] = [str(DATA / "esc10" / path) for path in frame["audio"]]
    parts = {"train": frame[frame.fold <= 3], "val": frame[frame.fold == 4], "test": frame[frame.fold == 5]}
    frames = {name: part[["audio", "label"]][:rows].copy() for name, part in parts.items()}
    return Data(frames, "label", config={"audio": {"name": str(MODELS / "yamnet")}})


def movies(rows: int) -> Data:
    """A film's rating from title, plot and tabular columns."""
    text, category = ["title", "plot"], ["mpaa_rating", "language", "country", "director"]
    number = ["year", "runtime_min", "imdb_votes", "box_office_usd"]
    frames = {}
    for split in SPLITS:
        frame = pd.read_csv(DATA / "movies_poster_plot" / f"{split}.csv")[[*text, *category, *number, "imdb_rating"]]
        for name in number:
            frame[name] = pd.to_numeric(frame[name].astype(str).str[:4] if name == "year" else frame[name], "coerce")
        frames[split] = frame[frame["imdb_rating"].notna()][:rows]
    return Data(frames, "imdb_rating", text=text, category=category, number=number)


def pairs(target: str, rows: int) -> Data:
    """Pairs of sentences."""
    text = ["sentence_a", "sentence_b"]
    frames = files("text_pair_sick", rows, [*text, target], *SPLITS)
    return Data(frames, target, text=text, config={"data": {"on_bad_cell": "mask"}})


def texts(folder: str, target: str, *names: str) -> Callable[[int], Data]:
    """Texts with a class each."""

    def load(rows: int) -> Data:
        frames = files(folder, rows, ["text", target], *names)
        for frame in frames.values():
            frame[target] = "c" + frame[target].astype(str)
        return Data(frames, target, text=["text"])

    return load


TABLES: dict[str, Callable[[int], Data]] = {
    "sst2": texts("text_sst2", "label", "train", "dev", "test"),
    "trec": texts("text_trec_qc", "coarse", "train", "test"),
    "trec_300": lambda rows: texts("text_trec_qc", "coarse", "train", "test")(min(rows, 300)),
    "clinc150": texts("text_clinc150", "intent", *SPLITS),
    "movies_rating": movies,
    "sick_relatedness": lambda rows: pairs("relatedness", rows),
    "sick_entailment": lambda rows: pairs("entailment", rows),
    "esc10": esc10,
    "esc10_noise": noisy_audio,
    "prices": prices,
    "prices_unnamed": prices_unnamed,
    "diabetes": lambda rows: sklearn_table(datasets.load_diabetes, rows, classes=False),
    "wine": lambda rows: sklearn_table(datasets.load_wine, rows, classes=True),
    "breast_cancer": lambda rows: sklearn_table(datasets.load_breast_cancer, rows, classes=True),
}


def best_linear(data: Data, matrices: dict[str, Any]) -> np.ndarray:
    """Test predictions of logistic or ridge regression, the penalty chosen on validation rows."""
    best, best_score = np.empty(0), -np.inf
    for penalty in PENALTIES:
        model = LogisticRegression(C=1 / penalty, max_iter=300) if data.classes else Ridge(penalty)
        model.fit(matrices["train"], data.truth("train"))
        score = measure(data, "val", model.predict(matrices["val"]))
        if score > best_score:
            best, best_score = model.predict(matrices["test"]), score
    return best


def tfidf(data: Data) -> np.ndarray | None:
    """Words and pairs of words of all text columns, a block each."""
    if not data.text:
        return None
    blocks: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for column in data.text:
        vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
        vectorizer.fit(data.frames["train"][column].fillna("").astype(str))
        for split in SPLITS:
            blocks[split].append(vectorizer.transform(data.frames[split][column].fillna("").astype(str)))
    return best_linear(data, {split: hstack(parts).tocsr() for split, parts in blocks.items()})


def tabular(data: Data) -> np.ndarray | None:
    """One-hot categories and standardised numbers, missing ones the mean."""
    if not data.category + data.number:
        return None
    blocks: dict[str, list[Any]] = {split: [] for split in SPLITS}
    if data.number:
        scaler, means = StandardScaler(), data.frames["train"][data.number].astype(float).mean().fillna(0)
        scaler.fit(data.frames["train"][data.number].astype(float).fillna(means))
        for split in SPLITS:
            scaled = scaler.transform(data.frames[split][data.number].astype(float).fillna(means))
            blocks[split].append(csr_matrix(scaled))
    if data.category:
        encoder = OneHotEncoder(handle_unknown="ignore").fit(
            data.frames["train"][data.category].fillna("none").astype(str)
        )
        for split in SPLITS:
            blocks[split].append(encoder.transform(data.frames[split][data.category].fillna("none").astype(str)))
    return best_linear(data, {split: hstack(parts).tocsr() for split, parts in blocks.items()})


def trees(data: Data) -> np.ndarray | None:
    """LightGBM on numbers and categories, early stopping on validation rows."""
    if not data.category + data.number:
        return None
    frames = {}
    for split in SPLITS:
        frames[split] = data.frames[split][[*data.number, *data.category]].copy()
        for column in data.category:
            known = data.frames["train"][column].fillna("none").astype(str).unique()
            cells = frames[split][column].fillna("none").astype(str)
            frames[split][column] = pd.Categorical(cells, categories=known)
    kind = lightgbm.LGBMClassifier if data.classes else lightgbm.LGBMRegressor
    model = kind(n_estimators=400, learning_rate=0.05, num_leaves=15, n_jobs=1, verbose=-1)
    stop = lightgbm.early_stopping(30, verbose=False)
    truth, labels = {split: data.truth(split) for split in SPLITS}, np.unique(data.truth("train"))
    if data.classes:
        truth = {split: np.searchsorted(labels, values).clip(max=len(labels) - 1) for split, values in truth.items()}
    watched = {"eval_X": frames["val"], "eval_y": truth["val"]}
    model.fit(frames["train"], truth["train"], **watched, callbacks=[stop])
    predicted = np.asarray(model.predict(frames["test"]))
    return labels[predicted] if data.classes else predicted


def frozen(data: Data, tuned: ft.FineTuned) -> np.ndarray | None:
    """The encoders' vectors side by side, standardised; for a model whose encoders were not tuned."""
    bundle, blocks = tuned.bundle, {}
    for split in SPLITS:
        examples = read_examples(bundle, data.frames[split], targets=False)
        features = fill_features(bundle.model, examples, cache=FeatureCache.of(None, 10.0))
        parts = []
        for name, tokens in features.items():
            if bundle.modalities[name].needs_backbone:
                codes = examples.columns[name].codes
                parts.append(vectors(tokens, np.maximum(codes, 0)).numpy() * (codes >= 0)[:, None])
        if not parts:
            return None
        blocks[split] = np.concatenate(parts, axis=1)
    scaler = StandardScaler().fit(blocks["train"])
    return best_linear(data, {split: scaler.transform(values) for split, values in blocks.items()})


def measure(data: Data, split: str, predicted: np.ndarray) -> float:
    """Accuracy, or R² of numbers."""
    return float((accuracy_score if data.classes else r2_score)(data.truth(split), predicted))


def standard_error(data: Data, predicted: np.ndarray) -> float:
    """Of the metric on test rows, by the bootstrap (300 draws)."""
    rng, truth = np.random.default_rng(0), data.truth("test")
    score = accuracy_score if data.classes else r2_score
    draws = [rng.integers(0, len(truth), len(truth)) for _ in range(300)]
    return float(np.std([score(truth[rows], predicted[rows]) for rows in draws]))


def run(name: str, rows: int, *, with_tuned: bool, overrides: list[str]) -> dict[str, Any]:
    """One table: every system's metric on test rows, the best floor's standard error, and the seconds of the fit."""
    data = TABLES[name](rows)
    settings: dict[str, Any] = {"target": data.target, **data.config}
    still = [] if with_tuned else ["trainer.epochs=0", "trainer.head_epochs=0"]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fusetune-floors-") as folder:
        for split in SPLITS:
            settings[split] = f"{folder}/{split}.csv"
            data.frames[split].to_csv(settings[split], index=False)
        fixed = ["report.alone=probe", *still, *overrides]
        tuned = ft.fit(config=settings, out=f"{folder}/run", overrides=fixed, progress=False)
        seconds = time.perf_counter() - start
        assert tuned.results is not None
        task = tuned.results.tasks[0]
        systems = {system.name: task.main(system).value for system in task.systems}
        predicted = {"tf-idf": tfidf(data), "one-hot": tabular(data), "LightGBM": trees(data)}
        predicted["frozen vectors"] = None if with_tuned else frozen(data, tuned)
    floors = {key: measure(data, "test", values) for key, values in predicted.items() if values is not None}
    best = max(floors, key=lambda key: floors[key])
    values = predicted[best]
    assert values is not None
    after = next((system.name for system in task.systems if system.kind == "after"), "")
    return {
        "name": name,
        "metric": "accuracy" if data.classes else "r2",
        "rows": {split: len(data.frames[split]) for split in SPLITS},
        "floors": floors,
        "probe": systems.get("frozen probe"),
        "tuned": systems.get(after) if with_tuned else None,
        "best": best,
        "error": standard_error(data, values),
        "seconds": seconds,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown, one row a table; a probe behind its best floor by more than a standard error is marked."""
    names = ("tf-idf", "one-hot", "LightGBM", "frozen vectors")
    lines = [
        "| table (train / val / test rows) | metric | " + " | ".join(names) + " | s.e. | probe | tuned |",
        "|---" * 9 + "|",
    ]
    for run_ in runs:
        floors = [f"{run_['floors'][name]:.3f}" if name in run_["floors"] else "" for name in names]
        behind = run_["probe"] < run_["floors"][run_["best"]] - run_["error"]
        tuned = f"{run_['tuned']:.3f}" if run_["tuned"] is not None else ""
        lines.append(
            f"| {run_['name']} ({' / '.join(str(num) for num in run_['rows'].values())}) | {run_['metric']} | "
            + " | ".join(floors)
            + f" | {run_['error']:.3f} | {run_['probe']:.3f}{' (behind)' if behind else ''} | {tuned} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TABLES), help=f"of {', '.join(TABLES)}")
    parser.add_argument("--rows", type=int, default=1200, help="at most so many train rows")
    parser.add_argument("--tuned", action="store_true", help="tune as well; frozen vectors are then left out")
    parser.add_argument("--out", type=Path, help="a JSON Lines file to append to")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for all")
    asked = parser.parse_args()
    runs = []
    for name in asked.names:
        runs.append(run(name, asked.rows, with_tuned=asked.tuned, overrides=asked.set))
        print(json.dumps(runs[-1]), flush=True)
        if asked.out:
            with asked.out.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
