"""The daemon's own state in one SQLite file: ledger, seens, retry queue and dead letters.

``sqlite.SqliteStore`` is what the rest of the daemon sees (``ports.Store``). Behind it: ``opening`` makes sure that
there is a sound file, ``lock`` that no second instance uses it, ``writer`` is the one thread that changes it, and
``ledger``, ``seens``, ``retries``, ``dead_letters``, ``runs`` hold the SQL, as functions over a connection;
``settlement`` joins them in one transaction.
"""
