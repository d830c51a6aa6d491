"""The time budget of a fit (`trainer.minutes`), divided among its steps.

Each step must stop when a share of the budget is spent, counted from the start of the run, so that time remains for
later steps:

| step | stops once this share is spent |
| --- | --- |
| choosing the fusion | 40 % |
| training | 80 % |
| trees, and models for the report's comparisons | 90 % |
| an attack in the report | 100 % |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from accelerate.utils import broadcast_object_list

from fusetune.training.hardware.devices import processes

CHOOSING, TRAINING, COMPARING = 0.4, 0.8, 0.9
"""The shares of the budget at which choosing the fusion, training, and training models for comparison stop."""


@dataclass(frozen=True)
class Deadline:
    """A time at which to stop.

    Attributes:
        minutes: the time budget of the run; None for no limit.
        share: the share of the budget after which to stop, 0 to 1.
        clock: returns seconds.
        start: the clock at the start of the run.

    Example:
        >>> deadline = Deadline(minutes=30)
        >>> training = deadline.part(TRAINING)  # 24 minutes after the start of the run
        >>> training.passed()
        False
    """

    minutes: float | None = None
    share: float = 1.0
    clock: Callable[[], float] = time.monotonic
    start: float = field(default=-1.0)

    def __post_init__(self) -> None:
        if self.start < 0:
            object.__setattr__(self, "start", self.clock())

    def part(self, share: float) -> Deadline:
        """Return the deadline of a step: the time at which a share of the budget is spent."""
        return replace(self, share=share)

    def passed(self) -> bool:
        """Return whether it is time to stop. The main process decides, so every process must call this."""
        if self.minutes is None:
            return False
        answer = [self.clock() - self.start >= 60 * self.minutes * self.share]
        if processes().num_processes > 1:
            broadcast_object_list(answer)
        return answer[0]
