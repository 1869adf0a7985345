"""Every stage from lobe-wise severity scores to a model directory."""
