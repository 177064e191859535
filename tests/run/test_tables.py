"""Numbers as people read them."""

import pytest

from amp.run.tables import human


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.00K"),
        (4_000_000, "4.00M"),
        (10_400_000, "10.4M"),
        (99_960_000, "100M"),
        (999_600_000, "1.00B"),
        (519_200_000_000, "519B"),
        (3.5e12, "3.50T"),
    ],
)
def test_counts_have_three_leading_digits(count: float, told: str) -> None:
    assert human(count) == told
