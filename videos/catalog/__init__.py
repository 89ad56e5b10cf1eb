"""Catalogs: which videos exist, read from folders, split files and the lists of published data sets."""
