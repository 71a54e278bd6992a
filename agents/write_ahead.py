"""SQLite's write-ahead log, switched on by many processes at once."""

from __future__ import annotations

import sqlite3
import time

PATIENCE = 60.0
"""Seconds; as long as connections wait for each other's writes."""


def switch_to_write_ahead(connection: sqlite3.Connection) -> None:
    """Put a file into WAL mode.

    While one process switches a new file, SQLite tells the others at once that it is locked, whatever timeout
    they opened it with: so they are asked to wait here.

    Raises:
        sqlite3.OperationalError: It stays locked, or cannot be switched.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return
