"""Model names to files on disk."""
