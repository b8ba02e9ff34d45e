"""Bytes of one kind to text: one file, one kind of document. ``_isolated`` runs them in limited child processes."""
