"""Images from HunyuanDiT: its settings, its three sets of conventions, its prompts, its pipeline."""
