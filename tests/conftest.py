"""Stand-in."""

import numpy
import pytest
from hypothesis import settings

settings.register_profile("minidl", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("minidl")


@pytest.fixture
def xp():
    return numpy
