"""Text to token ids: thin faces on the tokenizers of the transformers library."""
