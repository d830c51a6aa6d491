"""What vectors are worth that are cut to their first numbers."""

from __future__ import annotations

from collections.abc import Mapping

from fusetune.tasks.panels.kinds import Head, Section, TablePanel


def dims_section(metric: str, values: Mapping[int, float]) -> Section:
    """Return the main metric of the tuned model by the width of its vectors.

    Args:
        metric: its name.
        values: by width, the metric on the test rows.
    """
    rows: list[list[str | int | float | None]] = [[dim, value] for dim, value in values.items()]
    panel = TablePanel([Head("numbers of a vector", "count"), Head(metric, "number")], rows)
    figures = {str(dim): float(value) for dim, value in values.items()}
    return Section("dims", "Vectors cut to their first numbers", [panel], figures=figures)
