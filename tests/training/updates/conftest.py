import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def accelerator_state():
    """Restore the state that all accelerators of a process share, if an earlier test reset it."""
    if not AcceleratorState._shared_state:
        Accelerator(cpu=True)
