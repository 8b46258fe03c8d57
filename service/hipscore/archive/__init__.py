"""One file that holds everything: the database, the files it refers to, the settings.

The broker is left out. It holds nothing that the database does not say: the reaper announces
what is due. What was sent after a backup is sent again after its restoration, with the same UIDs
and message ids, so that a receiver knows it.

========================  ================================================================
member of the tar file    content
========================  ================================================================
``manifest.json``         :class:`Manifest`; the first member
``settings.json``         the effective settings, secrets masked
``rules.toml``            the rules file, if there is one
``database``              SQLite: the file; PostgreSQL: ``pg_dump --format=custom``
``spool/ab/cdef…``        an image or result, under its SHA-256
========================  ================================================================
"""

from hipscore.archive.manifest import ArchiveError, Manifest
from hipscore.archive.reading import check, restore
from hipscore.archive.writing import backup

__all__ = ["ArchiveError", "Manifest", "backup", "check", "restore"]
