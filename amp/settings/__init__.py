"""Settings: typed, frozen, each with its bounds, its default and its meaning.

`load` reads a YAML and `--set`, `command_line` the options of a script; `prune.PruneConfig`, `distill.DistillConfig`
and `compare.CompareConfig` are what a file holds, of the groups in `model`, `data`, `score`, `prune` and `distill`.
`python -m amp.settings` writes docs/settings.md. Nothing here imports torch.
"""
