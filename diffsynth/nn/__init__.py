"""Layers that two or more families use."""
