"""LoRA for any family: low-rank changes to a network that come and go while its weights stay as they are."""
