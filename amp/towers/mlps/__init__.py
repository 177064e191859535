"""The MLPs of a tower: how they are found, and how they are sliced."""
