"""Judges lesion segmentations: overlap per subtype, agreement of severity scores, paired tests between methods."""

__version__ = "0.1.0"
