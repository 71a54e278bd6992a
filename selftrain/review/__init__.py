"""The human budget: who is asked about which post, and what follows from the answers.

Everywhere here a folder that is none, or is damaged, is a `RunStateError`, a ledger that cannot be read or
written a `LedgerError`, a disk that refuses a `StorageError`; functions name what else they raise.
"""
