"""Scores hip inflammation on coronal STIR MRI. For research, not for clinical decisions."""

__version__ = "0.1.0"
