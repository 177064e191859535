"""Measurements of a dense or a pruned model: `amp eval NAME`, and the scripts in eval/."""
