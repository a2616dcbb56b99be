"""docs/diagnostics.md tells of every metric and of every range."""

import re

import numpy as np
import pytest

from alp_megatron.metrics.health import CHECKS
from alp_megatron.metrics.keys import required_keys
from alp_megatron.metrics.tokens import correction_metrics
from tests.support.runs import REPO

PAGE = (REPO / "docs" / "diagnostics.md").read_text()
NAMED = set(re.findall(r"`([a-z0-9_/]+)`", PAGE))


def test_every_metric_is_explained():
    token = {"weight": np.ones(1), "kept": np.ones(1, bool), "sample_id": np.zeros(1, int)}
    keys = {*required_keys(1), *correction_metrics(token, np.ones(1))}
    explained = {key.replace("mismatch_during_perturbed/", "mismatch_before/") for key in keys}
    assert explained - NAMED == set()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_range_is_the_one_in_use(check):
    (row,) = [line for line in PAGE.splitlines() if re.match(rf"\| `?{check.name}\b", line)][-1:]
    assert row.split("|")[2].strip() == check.limit
