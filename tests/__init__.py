"""Tests of diffsynth; the folders mirror the package."""
