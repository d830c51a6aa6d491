"""What was inferred is told before training."""

from fusetune.fitting.announce import announcement


def test_targets_columns_and_rows_are_told(fitted, shop_tables, capsys):
    from fusetune.deploy.tuned import read_examples

    bundle = fitted.bundle
    examples = {"train": read_examples(bundle, shop_tables["test"], targets=True)}
    lines = announcement(bundle.schema, bundle.tasks, bundle.modalities, examples)
    assert lines[0] == "target   label: binary"
    assert any(line.startswith("columns  text read by ") and line.endswith(": note") for line in lines)
    assert "columns  number: price" in lines
    assert lines[-1] == "rows     20 train"


def test_a_fit_tells_it_on_standard_error(shop_tables, quick, tmp_path, capsys):
    from fusetune import api
    from fusetune.config.config import Config

    ignored = {"columns": {name: {"role": "ignore"} for name in ("note", "photo", "voice")}}
    config = Config.build(quick).with_overrides(ignored)
    api.fit(shop_tables["train"], target="label", out=tmp_path / "m", config=config)
    told = capsys.readouterr()
    assert told.out == ""
    positions = [told.err.index(part) for part in ("label: binary", "number: price", "rows  ", "tune", "compare")]
    assert positions == sorted(positions)
