"""From a file to a module, for any family of networks; names no family."""
