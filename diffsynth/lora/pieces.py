"""Changes of rows of a weight as pairs of thin matrices: put together, taken apart and multiplied without rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from diffsynth.core.convert import SWAP_HALVES, TRANSPOSE, Conversion, Join, Rename, Split


@dataclass(frozen=True, eq=False)
class Piece:
    """A change of some rows of a weight: ``up @ down``, times alpha over rank.

    Args:
        first: the first of the rows.
        up: (rows, rank).
        down: (rank, columns); those of a convolution are its input channels and kernel in one row.
        alpha: None if nobody said, which means the rank.
    """

    first: int
    up: Tensor
    down: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """How many columns ``up`` has."""
        return self.up.shape[1]

    @property
    def end(self) -> int:
        """The row after the last one."""
        return self.first + len(self.up)

    @property
    def factor(self) -> float:
        """Alpha over rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


Pieces = Mapping[str, Sequence[Piece]]
"""A weight of ours → the changes of its rows, which do not overlap."""


def multiplied(tensor: Tensor, factor: float) -> Tensor | None:
    """Return a matrix times a number in its own dtype, or None if digits would be lost."""
    exact = tensor.double() * factor
    product = exact.to(tensor.dtype)
    return product if torch.equal(product.double(), exact) else None


def to_theirs(step: Conversion, pieces: Pieces, rows: Mapping[str, int]) -> list[Piece | None]:
    """Return the change of each of their tensors that one step of a conversion makes of ours, None if there is none.

    Args:
        step: the step.
        pieces: the changes of our weights; at least one that the step is about is among them.
        rows: how many rows each of our weights has.

    Raises:
        ValueError: the changes cannot be put together exactly.
    """
    match step.rule:
        case Join():
            return _parts(pieces[step.ours[0]], rows[step.ours[0]], len(step.theirs))
        case Split():
            shifted: list[Piece] = []
            offset = 0
            for name in step.ours:
                shifted += [replace(piece, first=piece.first + offset) for piece in pieces.get(name, ())]
                offset += rows[name]
            return [joined(shifted, offset)]
        case Rename(op=op):
            whole = joined(pieces[step.ours[0]], rows[step.ours[0]])
            if op is TRANSPOSE:
                return [replace(whole, up=whole.down.t(), down=whole.up.t())]
            return [replace(whole, up=op.backward(whole.up)) if op is SWAP_HALVES else whole]
        case _:
            return [joined(next(pieces[name] for name in step.ours if name in pieces), rows[step.ours[0]])]


def joined(pieces: Sequence[Piece], rows: int) -> Piece:
    """Return one change of all rows of a weight that is these changes of some, to the last bit.

    Where they have their inner matrix in common, it stays as it is; otherwise the ranks add up.

    Raises:
        ValueError: they overlap, or have scales that cannot be made one without rounding.
    """
    ordered = sorted(pieces, key=lambda piece: piece.first)
    if any(one.end > other.first for one, other in pairwise(ordered)):
        raise ValueError("some rows change twice")
    first = ordered[0]
    if len(ordered) == 1 and len(first.up) == rows:
        return first
    shared = all(piece.factor == first.factor and torch.equal(piece.down, first.down) for piece in ordered)
    rank = first.rank if shared else sum(piece.rank for piece in ordered)
    dtypes = {piece.up.dtype for piece in ordered} | {piece.down.dtype for piece in ordered}
    if len(dtypes) > 1:
        raise ValueError(f"they are kept in several dtypes, {', '.join(sorted(map(str, dtypes)))}")
    up = first.up.new_zeros(rows, rank)
    column = 0
    for piece in ordered:
        half = piece.up if piece.factor == first.factor else _rescaled(piece, first)
        up[piece.first : piece.end, column : column + piece.rank] = half
        column += 0 if shared else piece.rank
    alpha = None if all(piece.alpha is None for piece in ordered) else first.factor * rank
    return Piece(0, up, first.down if shared else torch.cat([piece.down for piece in ordered]), alpha)


def _rescaled(piece: Piece, like: Piece) -> Tensor:
    up = multiplied(piece.up, piece.factor / like.factor) if like.factor else None
    if up is None:
        scales = f"alpha over rank is {like.factor:g} in one and {piece.factor:g} in another"
        raise ValueError(f"{scales}, which cannot be one number without rounding")
    return up


def _parts(pieces: Sequence[Piece], rows: int, count: int) -> list[Piece | None]:
    """Return the changes of equal shares of a weight's rows."""
    share = rows // count
    own = {piece.first // share: replace(piece, first=0) for piece in pieces if len(piece.up) == share}
    if len(own) == len(pieces) and all(piece.first % share == 0 for piece in pieces):
        return [own.get(number) for number in range(count)]
    return split(joined(pieces, rows), count)


def split(piece: Piece, count: int) -> list[Piece | None]:
    """Return the changes of equal shares of the rows that one change of them all is made of.

    A share that does not change beside others that do gets none. Where each column of ``up`` changes one share only,
    as in what ``joined`` puts together, each share has its own columns and not those of the others.
    """
    shares = piece.up.chunk(count)
    changing = torch.stack([(share != 0).any(dim=0) for share in shares])  # (shares, rank)
    apart = bool((changing.sum(dim=0) == 1).all())
    found: list[Piece | None] = []
    for share, columns in zip(shares, changing, strict=True):
        if changing.any() and not columns.any():
            found.append(None)
        elif apart:
            alpha = None if piece.alpha is None else piece.alpha * int(columns.sum()) / piece.rank
            found.append(Piece(0, share[:, columns], piece.down[columns], alpha))
        else:
            found.append(replace(piece, first=0, up=share))
    return found
