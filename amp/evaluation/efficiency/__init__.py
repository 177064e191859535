"""Size and speed of a vision tower, of a pruned one beside its dense one: `record` asks and counts, `cells` measure,
`report` is the table."""
