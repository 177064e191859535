"""What a search measures: the networks, their entropy on held-out batches, and how little of it is done twice."""
