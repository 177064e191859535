"""Commands besides the scripts: what can be pruned (`models`), folders to published checkpoints and back."""
