"""The list of hand-made faults is still of this source, and of these tests."""

import pytest

from tests.support.faults import FAULTS
from tests.support.mutations import places
from tests.support.runs import REPO


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_stands_once_in_the_source(fault):
    assert len(places(fault)) == 1 and fault.replace != fault.find
    assert fault.tests and all(
        (REPO / "tests" / name.split("::")[0]).is_file() for name in fault.tests
    )
