"""Networks, a prompt and a scheduler make an image."""
