"""A pruned model beside its dense one.

In the order of a reader's questions:

- `models`: which the dense model is, and its weights.
- `agreement`: how far two models agree on images, without labels.
- `sides`: what the data and the models allow, and what is measured of each.
- `record`: the file of it, and the table.
"""
