"""Chunkers: one file, one plug-in; ``_name.py`` is shared by them and no plug-in."""
