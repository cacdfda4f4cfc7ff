"""A small model that paints emoji scenes from Chinese and English prompts: its data and how well it does."""
