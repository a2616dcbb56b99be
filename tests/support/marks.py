"""Parameters of tests that the default run leaves out."""

import pytest


def slow(*values):
    """A larger or further case of a test whose default cases show the same."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_unless(default: bool, *values):
    return pytest.param(*values) if default else slow(*values)
