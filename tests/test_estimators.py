"""The scikit-learn estimators: scikit-learn's own checks, its tools, and tables with texts."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from fusetune import FusetuneClassifier, FusetuneRegressor
from fusetune.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")  # scikit-learn warns of data that its own checks make


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "a": rng.normal(size=120),
            "b": rng.normal(size=120),
            "target": rng.choice(["x", "y"], 120),  # the name that the column of y has otherwise
        }
    )


@pytest.fixture(scope="module")
def labels(frame) -> np.ndarray:
    return np.where(frame["a"] > 0, "yes", "no")


@pytest.fixture(scope="module")
def classifier(frame, labels) -> FusetuneClassifier:
    return FusetuneClassifier(settings={"trainer.epochs": 2}).fit(frame, labels)


class TestClassifier:
    def test_learns_and_scores(self, classifier, frame, labels):
        assert classifier.score(frame, labels) > 0.9
        assert classifier.classes_.tolist() == ["no", "yes"]
        assert classifier.feature_names_in_.tolist() == ["a", "b", "target"]

    def test_probabilities_are_in_the_order_of_classes(self, classifier, frame):
        probabilities = classifier.predict_proba(frame)
        assert probabilities.shape == (120, 2)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
        assert (classifier.classes_[probabilities.argmax(1)] == classifier.predict(frame)).all()

    def test_probabilities_keep_that_order_where_the_model_has_another(self):
        numbers = np.repeat([2, 10, 1], 40)  # as texts 1, 10, 2
        X = pd.DataFrame({"a": np.log2(numbers) + np.random.default_rng(0).normal(scale=0.1, size=120)})
        classifier = FusetuneClassifier(settings={"trainer.epochs": 2}).fit(X, numbers)
        classifier.tuned_.bundle.targets["target"].classes.reverse()
        assert classifier.classes_.tolist() == [1, 2, 10]
        assert classifier.tuned_.labels["target"] == ["10", "2", "1"]
        probabilities = classifier.tuned_.predict_proba(X)
        np.testing.assert_array_equal(classifier.predict_proba(X), probabilities[:, ::-1])

    def test_report_says_that_there_are_no_test_rows(self, classifier):
        results = classifier.tuned_.results
        assert results.tasks[0].split == "validation"
        assert any("no test rows" in warning for warning in results.warnings)
        assert [table.split for table in results.tables] == ["train", "val"]

    def test_pickle_has_its_own_folder(self, classifier, frame):
        again = pickle.loads(pickle.dumps(classifier))
        assert again.tuned_.folder != classifier.tuned_.folder
        assert (again.predict_proba(frame) == classifier.predict_proba(frame)).all()

    def test_pickle_cannot_write_outside_its_folder(self, classifier, tmp_path):
        state = classifier.__getstate__()
        state["_files"] = {"../../escaped": b""}
        with pytest.raises(ValueError, match="outside"):
            FusetuneClassifier().__setstate__(state)

    def test_temporary_folder_goes_with_the_estimator(self, frame, labels):
        model = FusetuneClassifier(settings={"trainer.epochs": 1}).fit(frame[:60], labels[:60])
        folder = Path(model.tuned_.folder)
        assert (folder / "report.html").is_file()
        del model
        assert not folder.exists()

    @pytest.mark.parametrize("labels", [[0, 1, 2], [-1.0, 2.0], [False, True], ["01", "1"]])
    def test_labels_come_back_as_they_were(self, labels, frame):
        y = np.asarray(labels)[np.arange(len(frame)) % len(labels)]
        model = FusetuneClassifier(settings={"trainer.epochs": 1, "trainer.head_epochs": 1}).fit(frame, y)
        assert model.predict(frame).dtype == y.dtype
        assert set(model.predict(frame)) <= set(labels)

    def test_rows_as_dictionaries(self, frame, labels):
        rows = frame.to_dict("records")
        model = FusetuneClassifier(settings={"trainer.epochs": 2}).fit(rows, labels)
        assert model.score(rows, labels) > 0.9

    def test_settings_of_columns(self, frame, labels):
        model = FusetuneClassifier(settings={"trainer.epochs": 1, "columns.target": "ignore"}).fit(frame, labels)
        assert list(model.tuned_.bundle.modalities) == ["a", "b"]

    def test_groups_are_not_split(self, frame, labels):
        groups = np.arange(len(frame)) // 10
        model = FusetuneClassifier(settings={"trainer.epochs": 1}).fit(frame, labels, groups=groups)
        assert model.tuned_.bundle.schema.group == "group"

    @pytest.mark.parametrize(
        ("X", "y", "weights", "error", "words"),
        [
            ([[1.0], [2.0]], ["a", "b", "a"], None, ValueError, "inconsistent numbers of samples"),
            ([[1.0], [2.0]], ["a", "a"], None, ValueError, "one class"),
            ([[1.0], [2.0]], ["a", "b"], [0, 0], ValueError, "above zero"),
            ([[1.0], [2.0]], ["a", "b"], [1, 0], ValueError, "one class"),
            ([[1.0], [2.0]], ["a", "b"], [1], ValueError, "expected \\(2,\\)"),
        ],
    )
    def test_mistakes(self, X, y, weights, error, words):
        with pytest.raises(error, match=words):
            FusetuneClassifier().fit(np.asarray(X), y, sample_weight=weights)

    def test_target_in_settings(self, frame, labels):
        with pytest.raises(ConfigError, match="the target is y"):
            FusetuneClassifier(settings={"target": "a"}).fit(frame, labels)

    def test_not_fitted(self, frame):
        with pytest.raises(NotFittedError):
            FusetuneClassifier().predict(frame)
        with pytest.raises(NotFittedError):
            FusetuneClassifier().predict_proba(frame)


class TestParameters:
    def test_settings_are_parameters(self):
        model = FusetuneClassifier(settings={"trainer.epochs": 2}).set_params(trainer__epochs=3, fusion="gated", seed=1)
        assert model.get_params()["trainer__epochs"] == 3
        assert (model.settings, model.seed) == ({"trainer.epochs": 3, "fusion": "gated"}, 1)
        assert clone(model).settings == model.settings

    def test_set_params_leaves_the_given_settings(self):
        settings = {"trainer.epochs": 2}
        FusetuneClassifier(settings=settings).set_params(trainer__epochs=3)
        assert settings == {"trainer.epochs": 2}

    def test_misspelt(self):
        with pytest.raises(ConfigError, match="did you mean 'epochs'"):
            FusetuneClassifier().set_params(trainer__epocs=3)
        with pytest.raises(ValueError, match="Invalid parameter"):
            FusetuneClassifier().set_params(epochs=3)


class TestTools:
    def test_grid_search_over_settings(self, frame, labels):
        grid = GridSearchCV(FusetuneClassifier(), {"trainer__epochs": [1, 2], "fusion": ["gated"]}, cv=2)
        grid.fit(frame[:80], labels[:80])
        assert grid.best_params_["fusion"] == "gated"
        assert grid.best_estimator_.tuned_.bundle.config.fusion.name == "gated"

    def test_importance_finds_the_column(self, classifier, frame, labels):
        importance = permutation_importance(classifier, frame, labels, n_repeats=2, random_state=0)
        assert importance.importances_mean.argmax() == 0

    def test_cross_validation_of_a_regressor(self, frame):
        y = 3 * frame["a"] - frame["b"]
        assert cross_val_score(FusetuneRegressor(), frame, y, cv=2).min() > 0.9


SMALL = {"trainer.epochs": 1, "trainer.head_epochs": 5}
DIFFERENT = {"check_sample_weight_equivalence_on_dense_data": "rows are split off for validation by their position"}


@pytest.mark.slow
@parametrize_with_checks(
    [FusetuneClassifier(settings=SMALL), FusetuneRegressor(settings=SMALL)],
    expected_failed_checks=lambda estimator: DIFFERENT,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
