"""What people use today for the job of ``speed.py``, each as a script of its own in an environment of its own.

Each is called with one JSON object and prints one: see ``common``. They import nothing of ingestd, and ingestd nothing
of theirs.
"""
