from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.errors import CorruptCheckpoint, UnsupportedCheckpoint
from tests.core.formats.forged_files import entry, safetensors_file

A = entry(0, 8, (2,))
TWICE = b'{"a": %s, "a": %s}' % (json.dumps(A).encode(), json.dumps(A).encode())
DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"

WRONG = "describes a in a wrong way"
# header, bytes of data, the error's words
FAULTS: dict[str, tuple[object, int, str]] = {
    "cut data": ({"a": A}, 4, r"expected 7\d \(9\d.\d % present\)"),
    "no data": ({"a": A}, 0, r"% present"),
    "trailing bytes": ({"a": A}, 9, r"has 7\d bytes, expected 7\d\."),
    "hole": ({"a": A, "b": entry(12, 20, (2,))}, 20, "a hole before the tensor b"),
    "hole at the start": ({"a": entry(4, 12, (2,))}, 12, "a hole before the tensor a"),
    "overlap": ({"a": A, "b": entry(4, 12, (2,))}, 12, "overlaps what lies before the tensor b"),
    "same bytes twice": ({"a": A, "b": A}, 8, "overlaps"),
    "shape and bytes disagree": ({"a": entry(0, 8, (3,))}, 8, "has 8 bytes, its shape and dtype need 12"),
    "shape overflow": ({"a": entry(0, 8, (2**40, 2**40))}, 8, "need 4835703278458516698824704"),
    "size over 64 bits": ({"a": entry(0, 8, (2**70,))}, 8, WRONG),
    "too many axes": ({"a": entry(0, 8, (1,) * 100)}, 8, WRONG),
    "negative size": ({"a": entry(0, 8, (-2,))}, 8, WRONG),
    "ends before it begins": ({"a": entry(8, 0, (2,))}, 8, "has -8 bytes"),
    "fraction as size": ({"a": {**A, "shape": [2.0]}}, 8, WRONG),
    "entry is a number": ({"a": 3}, 0, WRONG),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 0, WRONG),
    "name twice": (TWICE, 8, "names a twice"),
    "deep json": (DEEP, 0, "nested too deeply"),
    "not json": (b"{'a': 1}", 0, "not JSON"),
    "not utf-8": (b'{"\xff": 1}', 0, "not JSON"),
    "number of 10 000 digits": (b'{"a": %s}' % (b"9" * 10_000), 0, "its header"),
    "metadata is a list": ({"__metadata__": [1], "a": A}, 8, "__metadata__"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_contradictory_file_is_refused_with_its_numbers(fault: str, tmp_path: Path) -> None:
    header, nbytes, words = FAULTS[fault]
    path = safetensors_file(tmp_path / "model.safetensors", header, bytes(nbytes))

    with pytest.raises(CorruptCheckpoint, match=words) as caught:
        open_checkpoint(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("length", [5000, 2**31, 2**63, 2**64 - 1])
def test_a_header_past_the_end_is_refused_unread(length: int, tmp_path: Path) -> None:
    path = safetensors_file(tmp_path / "model", {"a": A}, bytes(8), length)

    with pytest.raises(CorruptCheckpoint, match=f"a header of {length} bytes and has {path.stat().st_size}"):
        open_checkpoint(path)


def test_a_file_we_cannot_use_is_refused(tmp_path: Path) -> None:
    empty, quantised = {"__metadata__": {"format": "pt"}}, {"a": entry(0, 8, (2,), "Q4")}

    with pytest.raises(UnsupportedCheckpoint, match="holds no tensors"):
        open_checkpoint(safetensors_file(tmp_path / "empty", empty))
    with pytest.raises(UnsupportedCheckpoint, match="the tensor a has the dtype Q4"):
        open_checkpoint(safetensors_file(tmp_path / "quantised", quantised, bytes(8)))


def test_a_header_of_any_length_loads(tmp_path: Path) -> None:
    """The tensors then begin at any byte, which torch cannot view in place."""
    header = json.dumps({"a": entry(0, 8, (2,)), "b": entry(8, 12, (1, 2), "BF16")}).encode()
    data = torch.tensor([1.5, -2.0]).numpy().tobytes() + b"\x80\x3f\x00\xc0"

    for padding in range(8):
        path = safetensors_file(tmp_path / f"{padding}.safetensors", header + b" " * padding, data)
        checkpoint = open_checkpoint(path)
        assert checkpoint["a"].tolist() == [1.5, -2.0]
        assert checkpoint["b"].tolist() == [[1.0, -2.0]]
        assert all(tensor.data_ptr() % tensor.dtype.itemsize == 0 for tensor in checkpoint.values())


def test_odd_names_load_and_are_escaped_in_messages(tmp_path: Path) -> None:
    names = ["../../etc/passwd", "\x1b[31mred", "层.权重", "", "a b"]
    header = {name: entry(4 * index, 4 * index + 4, (1,)) for index, name in enumerate(names)}

    checkpoint = open_checkpoint(safetensors_file(tmp_path / "good", header, bytes(20)))
    assert list(checkpoint) == names

    with pytest.raises(CorruptCheckpoint, match=r"\\x1b\[31mred") as caught:
        open_checkpoint(safetensors_file(tmp_path / "bad", {"\x1b[31mred": entry(0, 4, (2,))}, bytes(4)))
    assert "\x1b" not in str(caught.value)


def test_twenty_thousand_tensors_load(tmp_path: Path) -> None:
    header = {f"blocks.{index}.weight": entry(index, index + 1, (1,), "U8") for index in range(20_000)}

    checkpoint = open_checkpoint(safetensors_file(tmp_path / "many", header, bytes(range(250)) * 80))

    assert len(checkpoint) == 20_000
    assert checkpoint["blocks.1001.weight"].item() == 1


def test_metadata_is_handed_on(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model", metadata={"trained_with": "steps: 5"})

    assert open_checkpoint(tmp_path / "model").metadata == {"trained_with": "steps: 5"}


@pytest.mark.parametrize("text", [b"[" * 1_100_000, b'{"a":[' + b"0," * 1_100_000 + b"0]}"])
def test_a_header_of_too_many_values_is_refused_before_it_is_parsed(text: bytes, tmp_path: Path) -> None:
    path = safetensors_file(tmp_path / "file", b"{" + text)

    with pytest.raises(CorruptCheckpoint, match="holds more than 1000000 values"):
        open_checkpoint(path)


def test_a_header_that_is_too_long_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = safetensors_file(tmp_path / "file", b"{", length=40 * 1024**2)
    os.truncate(path, 50 * 1024**2)

    with pytest.raises(CorruptCheckpoint, match="at most 33554432 are read"):
        open_checkpoint(path)
