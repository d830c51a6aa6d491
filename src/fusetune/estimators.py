"""scikit-learn estimators: `FusetuneClassifier` and `FusetuneRegressor`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from fusetune.api import fit, load
from fusetune.config.config import Config, merge
from fusetune.data.table import Table, is_missing
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.errors import ConfigError, TableError
from fusetune.modalities.values import ValueIndex
from fusetune.tasks.cells import label_text

NAMED = frozenset(Config.model_fields)


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: settings as parameters, tables from X and y, the model folder.

    Attributes:
        tuned_: the tuned model, with everything that `fusetune.load` gives.
        n_features_in_: the number of columns of X.
        feature_names_in_: (columns,) their names, if X was a DataFrame with names as text.
    """

    tuned_: FineTuned
    n_features_in_: int

    def __init__(
        self,
        *,
        settings: Mapping[str, Any] | None = None,
        val_size: float = 0.1,
        out: str | Path | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.settings = settings
        self.val_size = val_size
        self.out = out
        self.seed = seed
        self.progress = progress

    def set_params(self, **params: Any) -> Self:
        """Set parameters; `trainer__epochs=3` sets the setting `trainer.epochs`, so that a grid may search over it.

        Raises:
            ValueError: there is no such parameter.
            ConfigError: there is no such setting, or a value is wrong.
        """
        own = super().get_params(deep=False)
        nested = {name: value for name, value in params.items() if name not in own and name.partition("__")[0] in NAMED}
        super().set_params(**{name: value for name, value in params.items() if name not in nested})
        if nested:
            given = self.settings if isinstance(self.settings, Mapping) else {}
            settings = {**given, **{name.replace("__", "."): value for name, value in nested.items()}}
            Config().with_overrides(_nested(settings))
            self.settings = settings
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters; with `deep`, those of `settings` under their own names too: `trainer__epochs`."""
        params: dict[str, Any] = super().get_params(deep=False)
        if deep:
            settings = self.settings if isinstance(self.settings, Mapping) else {}
            params |= {name.replace(".", "__"): value for name, value in settings.items()}
        return params

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.categorical = tags.input_tags.allow_nan = True
        tags.non_deterministic = False
        tags.target_tags.required = True
        return tags

    def _fit(self, source: Any, y: list[Any], task: str, sample_weight: Any, groups: Any) -> Self:
        """Tune a model on the rows that `_read` returned; `y` has one target a row."""
        if len(y) != _num_rows(source):
            raise ValueError(f"X and y have inconsistent numbers of samples: {_num_rows(source)} and {len(y)}")
        if len(y) < 2:
            raise ValueError(f"a fit needs train and validation rows, more than {len(y)} sample")
        beside: dict[str, tuple[Any, str]] = {}
        if sample_weight is not None:
            beside["sample_weight"] = (_check_weights(sample_weight, len(y)), "weight")
        if groups is not None:
            beside["group"] = (groups, "group")
        inputs = _column_names(source)
        table, names = _with_columns(source, {"target": y} | {name: cells for name, (cells, _) in beside.items()})
        given = Config().with_overrides(_nested(dict(self.settings or {})))
        if given.target:
            raise ConfigError("the target is y", do="leave `target` out of the settings")
        roles = {name: {"role": "input"} for name in inputs} | {names[k]: {"role": v} for k, (_, v) in beside.items()}
        own: dict[str, Any] = {"seed": self.seed, "columns": {k: v for k, v in roles.items() if k not in given.columns}}
        own["data"] = {"split": [1 - self.val_size, self.val_size, 0]}
        if names["target"] not in given.tasks:
            own["tasks"] = {names["target"]: task}
        folder = self.out
        if folder is None:
            self._owned = tempfile.TemporaryDirectory(prefix="fusetune-", ignore_cleanup_errors=True)
            folder = Path(self._owned.name) / "model"
        config = given.with_overrides(own)
        self.tuned_ = fit(
            table, names["target"], config=config, out=folder, overwrite=self.out is not None, progress=self.progress
        )
        return self

    def _read(self, X: Any, *, reset: bool) -> Any:
        """Return X as rows to read: DataFrames and records, and arrays as tables with the columns x0, x1, ...

        Raises:
            ValueError: X has other columns than the rows that the estimator was fitted on, or is no table.
        """
        if _is_records(X):
            if reset:
                self.n_features_in_ = len(_column_names(list(X)))
            return [dict(row) for row in X]
        if hasattr(X, "columns"):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        array = validate_data(self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan")
        return pa.table({f"x{index}": _arrow(array[:, index]) for index in range(array.shape[1])})

    def _answers(self, X: Any) -> list[Any]:
        """Return the predicted cell of each row.

        Raises:
            TableError: a row cannot be predicted.
        """
        predictions = self.tuned_.predict(self._read(X, reset=False), progress=self.progress)
        (target,) = (task.target for task in self.tuned_.bundle.targets.values())
        cells = predictions[target]
        if (lost := next((row for row, cell in enumerate(cells) if is_missing(cell)), None)) is not None:
            why = predictions[predictions.table.column_names[-1]][lost]
            raise TableError(f"row {lost} of X cannot be predicted", came=why, do="correct it or leave it out")
        return cells

    def __getstate__(self) -> dict[str, Any]:
        """Return the parameters, and the files of the model folder in place of the model."""
        state: dict[str, Any] = super().__getstate__()
        state = {name: value for name, value in state.items() if name not in ("tuned_", "_owned")}
        if hasattr(self, "tuned_"):
            folder = self.tuned_.folder
            assert folder is not None
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            state["_files"] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Write the model folder's files to a temporary folder of this estimator and load the model."""
        files = state.pop("_files", None)
        super().__setstate__(state)
        if files is not None:
            self._owned = tempfile.TemporaryDirectory(prefix="fusetune-", ignore_cleanup_errors=True)
            folder = Path(self._owned.name) / "model"
            for name, content in files.items():
                path = folder / name
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise ValueError(f"a file of the model would lie outside its folder: {name!r}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self.tuned_ = load(folder)


class FusetuneClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """A classifier that tunes pretrained models on a table's columns, for scikit-learn's tools.

    Args:
        settings: of the fit, by their dotted names: `{"trainer.epochs": 3, "image.freeze": "all"}`. In a grid a
            setting is a parameter: `{"trainer__epochs": [1, 3]}`.
        val_size: the share of the rows of X that choose the best step, above 0 and below 1.
        out: the folder for the model and its report. None: a temporary one, which is deleted with the estimator.
        seed: of splits, weights, batches and dropout.
        progress: whether to show progress on standard error.

    Attributes:
        classes_: (classes,) the labels, sorted.
        tuned_: the tuned model, a `fusetune.FineTuned`; its report is `tuned_.folder / "report.html"`.
        n_features_in_: the number of columns of X.
        feature_names_in_: (columns,) the columns' names, if X was a DataFrame with names as text.

    A pickle has the files of the model folder, so it can be read elsewhere; for large models save the folder instead,
    with `tuned_.save`.

    Example:
        >>> from sklearn.model_selection import cross_val_score
        >>> scores = cross_val_score(FusetuneClassifier(), frame, labels, cv=3)  # doctest: +SKIP
    """

    classes_: np.ndarray

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Tune a model.

        Args:
            X: a DataFrame whose columns may be texts, numbers, categories, dates, paths of pictures and sounds or PIL
                images; or a list of rows as dictionaries; or an array, (rows, columns).
            y: (rows,) labels: text, numbers or booleans.
            sample_weight: (rows,) weights of the rows in the loss and the metrics, 0 or more.
            groups: (rows,) rows of one group are never split between train and validation rows.

        Raises:
            ValueError: X or y has the wrong shape, or there is only one class.
            UserError: something in the table or the settings has to be put right; see `fusetune.errors`.
        """
        source = self._read(X, reset=True)
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        self.classes_ = np.unique(labels)
        weighed = labels if sample_weight is None else labels[_check_weights(sample_weight, len(labels)) > 0]
        if len(np.unique(weighed)) < 2:
            raise ValueError(f"a classifier needs 2 classes or more; y has one class: {label_text(weighed[0])}")
        task = "binary" if len(self.classes_) == 2 else "multiclass"
        return self._fit(source, _python(labels), task, sample_weight, groups)

    def predict(self, X: Any) -> np.ndarray:
        """Return the label of each row, (rows,), as `classes_` has it.

        Raises:
            TableError: a row cannot be predicted.
        """
        check_is_fitted(self, "tuned_")
        index = ValueIndex([label_text(label) for label in self.classes_])
        positions = [index.find(label_text(cell)) for cell in self._answers(X)]
        return np.asarray(self.classes_[np.asarray(positions, dtype=np.int64)])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the labels, (rows, classes), in the order of `classes_`.

        A label that only validation rows have gets 0.

        Raises:
            TableError: a row cannot be predicted.
        """
        check_is_fitted(self, "tuned_")
        probabilities = self.tuned_.predict_proba(self._read(X, reset=False))
        if (lost := np.flatnonzero(np.isnan(probabilities).any(1))).size:
            raise TableError(f"row {lost[0]} of X cannot be predicted", do="correct it or leave it out")
        index = ValueIndex([label_text(label) for label in self.classes_])
        result = np.zeros((len(probabilities), len(self.classes_)))
        (labels,) = self.tuned_.labels.values()
        for column, label in enumerate(labels):
            result[:, index.find(label)] = probabilities[:, column]
        return result


class FusetuneRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """A regressor that tunes pretrained models on a table's columns, for scikit-learn's tools.

    The parameters, attributes and pickles are those of `FusetuneClassifier`, without `classes_`.

    Example:
        >>> from sklearn.inspection import permutation_importance
        >>> model = FusetuneRegressor().fit(frame, prices)  # doctest: +SKIP
        >>> permutation_importance(model, frame, prices).importances_mean  # doctest: +SKIP
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Tune a model; see `FusetuneClassifier.fit`.

        Args:
            X: a DataFrame, a list of rows as dictionaries, or an array, (rows, columns).
            y: (rows,) numbers.
            sample_weight: (rows,) weights of the rows, 0 or more.
            groups: (rows,) rows of one group are never split between train and validation rows.

        Raises:
            ValueError: X or y has the wrong shape, or y is not finite.
            UserError: something in the table or the settings has to be put right; see `fusetune.errors`.
        """
        source = self._read(X, reset=True)
        numbers = np.asarray(column_or_1d(y, warn=True), dtype=np.float64)
        if not np.isfinite(numbers).all():
            raise ValueError("y contains NaN or infinity")
        return self._fit(source, numbers.tolist(), "regression", sample_weight, groups)

    def predict(self, X: Any) -> np.ndarray:
        """Return the number of each row, (rows,) float64.

        Raises:
            TableError: a row cannot be predicted.
        """
        check_is_fitted(self, "tuned_")
        return np.asarray(self._answers(X), dtype=np.float64)


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with dotted names as nested ones."""
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        merge(nested, value)
    return nested


def _is_records(X: Any) -> bool:
    return isinstance(X, list | tuple) and len(X) > 0 and all(isinstance(row, Mapping) for row in X)


def _num_rows(source: Any) -> int:
    return source.num_rows if isinstance(source, pa.Table) else len(source)


def _check_weights(weights: Any, rows: int) -> np.ndarray:
    """Return the rows' weights, (rows,) float64.

    Raises:
        ValueError: they are not `rows` finite numbers of 0 or more, or all of them are 0.
    """
    checked = np.asarray(weights, dtype=np.float64)
    if checked.shape != (rows,):
        raise ValueError(f"sample_weight has the shape {checked.shape}, expected ({rows},)")
    if not (np.isfinite(checked).all() and (checked >= 0).all() and (checked > 0).any()):
        raise ValueError("sample_weight needs finite weights of 0 or more, and at least one above zero")
    return checked


def _python(array: np.ndarray) -> list[Any]:
    """Return an array's cells as Python objects; text of numpy becomes str."""
    return [str(cell) if isinstance(cell, np.str_) else cell for cell in array.tolist()]


def _arrow(column: np.ndarray) -> pa.Array:
    """Return a column of an array; nan is a missing cell."""
    return pa.array(_python(column), from_pandas=True)


def _with_columns(source: Any, columns: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """Return a source with further columns, and their names, with underscores where the source has such a name."""
    taken = set(_column_names(source))
    names = {name: name for name in columns}
    for name in columns:
        while names[name] in taken:
            names[name] += "_"
    cells = {names[name]: list(values) for name, values in columns.items()}
    if isinstance(source, list):
        rows = [row | {name: values[i] for name, values in cells.items()} for i, row in enumerate(source)]
        return Table.from_records(rows, source="X"), names
    if isinstance(source, pa.Table):
        for name, values in cells.items():
            source = source.append_column(name, pa.array(values))
        return source, names
    return source.assign(**cells), names


def _column_names(source: Any) -> list[str]:
    if isinstance(source, list):
        return list(dict.fromkeys(str(name) for row in source for name in row))
    return [str(name) for name in (source.column_names if isinstance(source, pa.Table) else source.columns)]
