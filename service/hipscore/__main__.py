"""``python -m hipscore`` is the ``hipscore`` command."""

from hipscore.cli import main

main()
