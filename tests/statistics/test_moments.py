"""Laws of the groups of blocks whose moments are held at once."""

import pytest

from amp.statistics.moments import gigabytes_for_moments, group_bytes, groups


def test_groups_hold_every_block_once() -> None:
    widths = [1000, 4000, 2000, 8000, 100]
    for gigabytes in (0.0, 0.1, 1.0, 100.0):
        found = groups(widths, gigabytes)
        assert [block for group in found for block in group] == list(range(5))
        assert all(len(g) == 1 or group_bytes([widths[b] for b in g]) <= gigabytes * 1e9 for g in found)


def test_moments_take_two_fifths_of_a_gpu_and_16_gb_of_a_cpu() -> None:
    assert gigabytes_for_moments() == 16.0
    assert gigabytes_for_moments(gpu_gb=24.0) == pytest.approx(9.6)
