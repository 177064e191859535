"""Laws of the groups of blocks whose moments are held at once."""

from amp.statistics.moments import group_bytes, groups


def test_groups_hold_every_block_once() -> None:
    widths = [1000, 4000, 2000, 8000, 100]
    for gigabytes in (0.0, 0.1, 1.0, 100.0):
        found = groups(widths, gigabytes)
        assert [block for group in found for block in group] == list(range(5))
        assert all(len(g) == 1 or group_bytes([widths[b] for b in g]) <= gigabytes * 1e9 for g in found)
