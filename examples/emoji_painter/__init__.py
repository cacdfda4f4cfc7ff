"""The small model that comes with the package, from its data to its files; each step is a command.

    python -m examples.emoji_painter.vocabulary build/painter/vocabulary
    diffsynth train examples/emoji_painter/autoencoder.toml
    diffsynth train examples/emoji_painter/denoiser.toml
    python -m examples.emoji_painter.bundle build/painter/denoiser/final --autoencoder FILE-OF-1
    python -m examples.emoji_painter.evaluate --model diffsynth/hub/bundled/HunyuanDiT-Emoji --output build/evaluation

The files that come along were trained in several runs, with scenes that changed between them; their headers and the
card have the settings of the last.

Needs ``pip install "diffsynth[painter]"`` and the font of Debian's ``fonts-noto-color-emoji``.
"""
