"""Shows the whole pipeline on handwritten digits, on a CPU, in a few minutes."""

from amp.demo.__main__ import main

__all__ = ["main"]
