"""A tuned model as an MLflow model: what MLflow loads predicts the same."""

import pandas as pd
import pytest
from typer.testing import CliRunner

from fusetune.cli.main import app
from fusetune.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own warnings of deprecation


@pytest.fixture(scope="module")
def exported(fitted, tmp_path_factory):
    out = tmp_path_factory.mktemp("mlflow") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        done = CliRunner().invoke(app, ["export", str(fitted.folder), "--to", "mlflow", "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def frame(shop_tables) -> pd.DataFrame:
    rows = pd.read_csv(shop_tables["test"]).drop(columns=["label"])
    folder = shop_tables["test"].parent
    for column in ("photo", "voice"):
        rows[column] = [str(folder / cell) if isinstance(cell, str) else None for cell in rows[column]]
    return rows.set_index(pd.RangeIndex(100, 120))


def test_loaded_model_predicts_the_same(exported, fitted, frame, monkeypatch):
    import mlflow.pyfunc

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    predicted = mlflow.pyfunc.load_model(str(exported)).predict(frame)
    pd.testing.assert_frame_equal(predicted, fitted.predict(frame).to_pandas())
    assert predicted.index.tolist() == list(range(100, 120))


def test_signature_names_columns_that_may_be_missing(exported):
    from mlflow.models import Model

    signature = Model.load(str(exported)).signature
    assert signature.inputs.input_names() == ["note", "photo", "voice", "price", "plan"]
    assert not signature.inputs.required_input_names()
    assert signature.outputs.input_names()[:3] == ["row", "label", "label_probability"]


def test_there_is_no_pickle(exported):
    assert not [path for path in exported.rglob("*") if path.suffix in (".pkl", ".pickle")]


def test_a_folder_that_is_there_is_refused(exported, fitted):
    with pytest.raises(ConfigError, match="there already"):
        fitted.save_mlflow(exported)
