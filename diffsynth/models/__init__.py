"""One folder per family of networks; each declares ``FAMILY``."""
