"""Public data sets brought into a data directory: images, lobe scores and cases.csv."""
