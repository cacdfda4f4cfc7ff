"""Benchmarks, and the proof at full size; each is run with ``python -m benchmarks.NAME``.

``full_size`` draws with files of the published size and compares with Diffusers, ``load`` times loading,
``denoise`` times a step. Diffusers must be installed; nothing is downloaded.
"""
