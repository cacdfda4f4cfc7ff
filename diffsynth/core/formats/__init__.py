"""One reader per file format: each turns a file into a table of where its tensors lie."""
