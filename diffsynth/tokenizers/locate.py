"""Find the vocabulary of a text encoder: given, beside its checkpoint, or in a folder next to that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from diffsynth.errors import TokenizerNotFound

Kind = Literal["wordpiece", "sentencepiece", "bpe"]

FILE_NAMES: dict[Kind, tuple[str, ...]] = {
    "wordpiece": ("vocab.txt",),
    "sentencepiece": ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
    "bpe": ("vocab.json", "tokenizer.json"),
}
FOLDERS: dict[Kind, tuple[str, ...]] = {
    "wordpiece": ("tokenizer", "tokenizer_2", "clip_text_encoder"),
    "sentencepiece": ("tokenizer_2", "mt5", "tokenizer"),
    "bpe": ("tokenizer", "tokenizer_2", "clip"),
}
OPTIONS: dict[Kind, str] = {
    "wordpiece": "clip_tokenizer= (--clip-tokenizer)",
    "sentencepiece": "t5_tokenizer= (--t5-tokenizer)",
    "bpe": "clip_tokenizer= (--clip-tokenizer)",
}
_HUNYUAN_DIT = (
    'of HunyuanDiT it is t2i/tokenizer/vocab.txt or t2i/mt5/spiece.model; download_models(["HunyuanDiT"]) fetches both'
)
RELEASES: dict[Kind, str] = {
    "wordpiece": _HUNYUAN_DIT,
    "sentencepiece": _HUNYUAN_DIT,
    "bpe": "of Stable Diffusion 1.5 and SDXL it is tokenizer/vocab.json, with merges.txt beside it; "
    "openai/clip-vit-large-patch14 has the same two files",
}
REFUSED = "vocab_org.txt"  # an older, shorter vocabulary that some releases carry beside the right one


def locate_vocabulary(kind: Kind, checkpoint_path: Path, explicit: Path | None = None) -> Path:
    """Return the file of a text encoder's vocabulary.

    Args:
        kind: what to look for.
        checkpoint_path: the text encoder's weight file or folder. Its own folder is searched first, then
            folders inside and beside it that are called as releases call them ("tokenizer", "mt5", ...);
            for a link, then the same around the file it points to.
        explicit: a file or folder the user named; if given, no other place is searched.

    Raises:
        TokenizerNotFound: if it is in none of these places; the message lists them.
    """
    looked: list[str] = []
    for candidate in given(kind, explicit) if explicit is not None else nearby(kind, checkpoint_path):
        if candidate.is_file() and candidate.name != REFUSED:
            return candidate
        looked.append(f"{candidate} (an older vocabulary, never used)" if candidate.name == REFUSED else str(candidate))
    raise TokenizerNotFound(
        f"{kind} vocabulary ({' or '.join(FILE_NAMES[kind])})",
        looked,
        f"Put the file into one of these places, or give its path as {OPTIONS[kind]}. It belongs to the release of "
        f"the weights: {RELEASES[kind]}.",
    )


def given(kind: Kind, path: Path) -> Iterator[Path]:
    """The places that a path named by the user may mean."""
    if not path.is_dir():
        yield path
        return
    for folder in (path, *(path / name for name in FOLDERS[kind])):
        yield from (folder / name for name in FILE_NAMES[kind])


def nearby(kind: Kind, checkpoint: Path) -> Iterator[Path]:
    """The places around a checkpoint, nearest first, none twice."""
    seen: set[Path] = set()
    for path in (checkpoint.absolute(), checkpoint.resolve()):
        home = path if path.is_dir() else path.parent
        for folder in (home, *(root / name for root in (home, home.parent) for name in FOLDERS[kind])):
            if folder not in seen:
                seen.add(folder)
                yield from (folder / name for name in FILE_NAMES[kind])
