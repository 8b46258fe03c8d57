"""The database: tables, moves, ledger and queries.

Plain functions take ``session`` keyword-only and never commit; the caller does, one
transaction per state change (:func:`hipscore.store.engine.transaction`).
"""
