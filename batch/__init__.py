"""Runs the uploaded algorithm over many scans on grand-challenge.org and brings the results home."""
