"""Allocations, a file each: what gives every block its width, where `prune.widths` does not.

A file holds `allocate(networks, settings, size_of)`, which returns the widths and, from a search, what it found; its
name is a word of `prune.allocation`.
"""
