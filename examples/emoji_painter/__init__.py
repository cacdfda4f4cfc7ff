"""The small model that comes with the package, from its data to its files; each step is a command.

    python -m examples.emoji_painter.vocabulary build/painter/vocabulary
    diffsynth train examples/emoji_painter/autoencoder.toml
    diffsynth train examples/emoji_painter/denoiser.toml
    python -m examples.emoji_painter.bundle build/painter/denoiser/final --autoencoder FILE-OF-1
    python -m examples.emoji_painter.evaluate --model diffsynth/hub/bundled/HunyuanDiT-Emoji --output build/evaluation

and its control network for edges, over the finished model:

    diffsynth train examples/emoji_painter/control.toml
    python -m examples.emoji_painter.placement --model models/HunyuanDiT-Emoji --control FILE-OF-3
    python -m examples.emoji_painter.bundle_control FILE-OF-3 --placement placement.json

The files that come along were trained in several runs, with scenes that changed between them; their headers and the
card have the settings of the last.

Needs ``pip install "diffsynth[painter]"`` and the font of Debian's ``fonts-noto-color-emoji``.
"""
