"""COVID-19 lesion segmentation on chest CT: inference, and what training shares with it."""

__version__ = "0.1.0"
