"""Heads in an adapter's place."""

from __future__ import annotations

import numpy as np
import pytest

from adapterhub.curation.stand_in import StandIn
from adapterhub.errors import DataError
from tests.curation.making import clouds


def test_more_rows_are_better_and_their_order_is_nothing() -> None:
    features, labels = clouds(400, apart=2.0)
    test, gold = clouds(300, seed=1, apart=2.0)
    heads = StandIn.of(100 + 5 * features, labels, 100 + 5 * test, gold)
    few, many = heads.wrong(np.arange(9)), heads.wrong(np.arange(400))
    assert few.shape == (300,)
    assert many.mean() < few.mean()
    assert many.mean() < 0.2
    assert (heads.wrong(np.arange(60)) == heads.wrong(np.arange(60)[::-1])).all()
    with pytest.raises(DataError, match="one label only"):
        heads.wrong(np.arange(0, 30, 3))
