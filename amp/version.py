"""The version of this software, which every artifact records."""

__version__ = "0.2.0"
