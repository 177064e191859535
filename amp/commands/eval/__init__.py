"""The commands of `amp eval`, one file each, as in the folder above."""
