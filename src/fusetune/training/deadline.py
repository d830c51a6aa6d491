"""The time that a fit may take (`trainer.minutes`), shared out over its steps.

Each step is given a part of the budget, counted from the start of the run, so that later steps find some of it left:

| step | stops once this share is spent |
| --- | --- |
| choosing the fusion | 40 % |
| training | 80 % |
| trees, models that the report compares with | 90 % |
| an attack in the report | 100 % |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from accelerate.utils import broadcast_object_list

from fusetune.training.hardware.devices import processes

CHOOSING, TRAINING, COMPARING = 0.4, 0.8, 0.9
"""The shares of the budget at which choosing the fusion, training, and growing or training what is compared stop."""


@dataclass(frozen=True)
class Deadline:
    """When to stop.

    Attributes:
        minutes: of the run; None for no limit.
        share: of these minutes, after which to stop.
        clock: gives seconds.
        start: of the run, by the clock.

    Example:
        >>> deadline = Deadline(minutes=30)
        >>> training = deadline.part(TRAINING)  # over 24 minutes after the start of the run
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
        """Return the time at which a share of the same run's minutes is spent."""
        return replace(self, share=share)

    def passed(self) -> bool:
        """Return whether it is time to stop. All processes get the main one's answer, so all have to ask."""
        if self.minutes is None:
            return False
        answer = [self.clock() - self.start >= 60 * self.minutes * self.share]
        if processes().num_processes > 1:
            broadcast_object_list(answer)
        return answer[0]
