"""Prunes and evaluates a small CLIP on images of handwritten digits, on a CPU, in about a minute."""

from amp.demo.__main__ import main

__all__ = ["main"]
