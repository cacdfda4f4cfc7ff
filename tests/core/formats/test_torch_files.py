from __future__ import annotations

import collections
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.errors import CheckpointError, CorruptCheckpoint, NotACheckpoint, UnsupportedCheckpoint
from tests.core.formats.forged_files import TEN_FLOATS, Call, Stored, View, legacy_file, pickled, zip_file


class Named(torch.Tensor):
    """A tensor of a class of its own."""


BOTH: tuple[Callable[..., Path], ...] = (zip_file, legacy_file)
V2, V3 = torch._utils._rebuild_tensor_v2, torch._utils._rebuild_tensor_v3
PARAMETER = torch._utils._rebuild_parameter
FROM_TYPE = torch._tensor._rebuild_from_type_v2
SHARED = b"\x80\x02}q\x00(X\x01\0\0\0aK\x01u" + b"".join(
    b"}q%c(X\x01\0\0\0ah%cX\x01\0\0\0bh%cu" % (level, level - 1, level - 1) for level in range(1, 61)
)

# What is wrong with the value, whichever file format it lies in.
VALUES: dict[str, tuple[object, type[CheckpointError], str]] = {
    "a list": ([1, 2, 3], UnsupportedCheckpoint, "holds a list of 3, not a mapping of names to tensors"),
    "a number": (7, UnsupportedCheckpoint, "a value of the type int"),
    "None": (None, UnsupportedCheckpoint, r"nothing \(None\)"),
    "an empty dict": ({}, UnsupportedCheckpoint, "an empty dict"),
    "no tensors": ({"epoch": 1, "name": "x"}, UnsupportedCheckpoint, "a dict of epoch, name"),
    "one tensor": (View(), UnsupportedCheckpoint, "one tensor without a name"),
    "a list of tensors": ([View()], UnsupportedCheckpoint, "a list of 1"),
    "names that are numbers": ({0: View()}, UnsupportedCheckpoint, "under a value of the type int instead of a name"),
    "names that are tuples": ({("a", 1): View()}, UnsupportedCheckpoint, "under an object instead of a name"),
    "a joined name that comes twice": (
        {"a": {"b.w": View()}, "a.b": {"w": View()}}, UnsupportedCheckpoint, r"a dict of a, a\.b, not a mapping"
    ),
    "a number inside a dict": ({"a": {0: View()}}, UnsupportedCheckpoint, "of the type int instead of a name"),
    "three levels down": ({"a": {"b": {"w": View()}}}, UnsupportedCheckpoint, "a dict of a,"),
    "quantised storage": ({"w": View(Stored(kind=torch.QInt8Storage))}, UnsupportedCheckpoint, "torch.QInt8Storage"),
    "meta": ({"w": View(Stored(location="meta"))}, UnsupportedCheckpoint, "without data"),
    "sparse": (
        {"w": Call(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, ())},
        UnsupportedCheckpoint, "sparse, not dense",
    ),
    "nested": ({"w": Call(torch._utils._rebuild_nested_tensor, View())}, UnsupportedCheckpoint, "nested_tensor"),
    "conjugate": ({"w": View(None, 0, (10,), (1,), {"conj": True})}, UnsupportedCheckpoint, "conjugate"),
    "expanded": ({"w": View(None, 0, (2, 3), (0, 1))}, UnsupportedCheckpoint, "w was saved as an expanded view"),
    "overlapping": ({"w": View(None, 0, (3, 3), (1, 1))}, UnsupportedCheckpoint, "an expanded view"),
    "four bytes to 4 TiB": ({"w": View(None, 0, (2**40,), (0,))}, UnsupportedCheckpoint, "w was saved as an expanded"),
    "expanded past the end": ({"w": View(None, 0, (2, 11), (0, 1))}, CorruptCheckpoint, "44 bytes of a storage that"),
    "shape past the end": ({"w": View(None, 0, (11,), (1,))}, CorruptCheckpoint, "44 bytes of a storage that has 40"),
    "offset past the end": ({"w": View(None, 9, (2,), (1,))}, CorruptCheckpoint, "needs 44 bytes"),
    "stride past the end": ({"w": View(None, 0, (2,), (10,))}, CorruptCheckpoint, "needs 44 bytes"),
    "shape overflow": ({"w": View(None, 0, (2**62, 2**62), (2**62, 1))}, CorruptCheckpoint, "needs"),
    "negative offset": ({"w": View(None, -1)}, CorruptCheckpoint, "no numbers from 0"),
    "negative size": ({"w": View(None, 0, (-1,))}, CorruptCheckpoint, "no numbers from 0"),
    "negative stride": ({"w": View(None, 0, (2,), (-1,))}, CorruptCheckpoint, "no numbers from 0"),
    "size of 71 bits": ({"w": View(None, 0, (2**70,))}, CorruptCheckpoint, "no numbers from 0"),
    "size that is text": ({"w": View(None, 0, ("2",))}, CorruptCheckpoint, "no numbers from 0"),
    "fewer strides than sizes": ({"w": View(None, 0, (2, 2))}, CorruptCheckpoint, "2 sizes and 1 strides"),
    "a hundred axes": ({"w": View(None, 0, (1,) * 100, (1,) * 100)}, CorruptCheckpoint, "no numbers from 0"),
    "storage shorter than declared": ({"w": View(Stored(count=20))}, CorruptCheckpoint, "expected"),
    "storage longer than declared": ({"w": View(Stored(count=5), 0, (5,))}, CorruptCheckpoint, "expected"),
    "storage of 2^62 elements": ({"w": View(Stored(count=2**62))}, CorruptCheckpoint, "expected"),
    "storage of -1 elements": ({"w": View(Stored(count=-1))}, CorruptCheckpoint, "impossible size"),
    "storage described twice": ({"w": View(), "v": View(Stored(count=5))}, CorruptCheckpoint, "in two ways"),
    "storage that is not there": ({"w": View(Stored("../1"))}, CorruptCheckpoint, "storage"),
    "tensor of no storage": ({"w": Call(V2, 1, 0, (1,), (1,))}, CorruptCheckpoint, "in a way that torch does not"),
    "tensor of nothing": ({"w": Call(V2)}, CorruptCheckpoint, "in a way that torch does not"),
    "untyped tensor of nothing": ({"w": Call(V3, 1)}, CorruptCheckpoint, "in a way that torch does not"),
    "quantised dtype": ({"w": Call(V3, Stored(), 0, (), (), False, {}, torch.qint8)}, UnsupportedCheckpoint, "qint8"),
    "parameter of nothing": ({"w": Call(PARAMETER, 1)}, CorruptCheckpoint, "describes a parameter"),
    "tensor of no class": ({"w": Call(FROM_TYPE, 1)}, CorruptCheckpoint, "in a way that torch does not"),
    "tensor in itself": ({"w": Call(FROM_TYPE, FROM_TYPE, torch.Tensor, (), None)}, CorruptCheckpoint, "in itself"),
    "size for a tensor": (
        {"w": Call(FROM_TYPE, torch.Size, torch.Tensor, ((1,),), None)}, CorruptCheckpoint, "in a way that"
    ),
    "storage with two names": (b"\x80\x02X\x07\0\0\0storageX\x01\0\0\0a\x86Q.", CorruptCheckpoint, "names a storage"),
    "storage with a line of text": (b"\x80\x02P0\n.", CorruptCheckpoint, "names a storage"),
    "storage that is a view": (
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x0aK\x01tQ.",
        UnsupportedCheckpoint, "a view of a storage",
    ),
    "a global": (b"\x80\x02ctorch\nload\n.", UnsupportedCheckpoint, "holds the name torch.load"),
    "global of a number": (b"\x80\x04K\x01K\x02\x93.", CorruptCheckpoint, "names a global without text"),
    "instance of a number": (b"\x80\x02K\x01)\x81.", CorruptCheckpoint, "an instance of no class"),
    "a set": (b"\x80\x04\x8f(K\x01\x90.", UnsupportedCheckpoint, "holds an object"),
    "frozen set": (b"\x80\x04(K\x01\x91.", UnsupportedCheckpoint, "holds an object"),
    "two values": (b"\x80\x02NN.", CorruptCheckpoint, "ends in the middle"),
    "tuple of too few": (b"\x80\x02N\x87.", CorruptCheckpoint, r"not there \(TUPLE3\)"),
    "values outside the pickle": (b"\x80\x05\x97.", CorruptCheckpoint, "an operation that no file of weights needs"),
    "copies and discarded marks": (b"\x80\x02](N1(0N2\x860.", UnsupportedCheckpoint, "a list of 0"),
    "20 000 levels": (b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".", UnsupportedCheckpoint, "a list of 1"),
    "itself": (b"\x80\x02]q\x00h\x00a.", UnsupportedCheckpoint, "a list of 1"),
    "2^60 leaves": (SHARED + b"\x30" * 60 + b".", UnsupportedCheckpoint, "a dict of a"),
    "name twice": (b"\x80\x02}X\x01\0\0\0aNsX\x01\0\0\0aNs.", CorruptCheckpoint, "names a twice"),
    "value that is not there": (b"\x80\x02h\x05.", CorruptCheckpoint, r"not there \(BINGET\)"),
    "empty stack": (b"\x80\x02.", CorruptCheckpoint, "ends in the middle"),
    "cut pickle": (b"\x80\x02}X\xff\0\0\0a", CorruptCheckpoint, "cannot be read"),
    "text of 8 EiB": (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f", CorruptCheckpoint, "more than 67108864 bytes"),
    "no such operation": (b"\x80\x02\xff.", CorruptCheckpoint, "cannot be read"),
    "items of a list": (b"\x80\x02]X\x01\0\0\0aNs.", CorruptCheckpoint, "no dict"),
    "appended to a dict": (b"\x80\x02}Na.", CorruptCheckpoint, "no list"),
    "call of a number": (b"\x80\x02K\x01)R.", CorruptCheckpoint, "no function"),
}  # fmt: skip


@pytest.mark.parametrize("write", BOTH, ids=["zip", "legacy"])
@pytest.mark.parametrize("fault", VALUES)
def test_a_value_we_cannot_use_is_described(fault: str, write: Callable[..., Path], tmp_path: Path) -> None:
    value, kind, words = VALUES[fault]
    path = write(tmp_path / "model.pt", value)
    begin = time.monotonic()

    with pytest.raises(kind, match=words) as caught:
        open_checkpoint(path)

    assert time.monotonic() - begin < 2
    assert str(caught.value).startswith(f"{path}: ")
    assert "weights_only" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_too_long_a_pickle_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffsynth.core.formats.pickle_data.MAX_OPERATIONS", 1000)
    path = zip_file(tmp_path / "model.pt", b"\x80\x02" + b"N0" * 1000 + b"}.")

    with pytest.raises(CorruptCheckpoint, match="more than 1000 operations"):
        open_checkpoint(path)


def test_tensors_that_are_not_dense_are_refused(tmp_path: Path) -> None:
    outside = torch.sparse_coo_tensor(torch.tensor([[0, 7]]), torch.ones(2), (2,), check_invariants=False)
    kinds = {
        "sparse, not dense": torch.eye(2).to_sparse(),
        "sparse, not": outside,
        "meta_tensor": torch.empty(2, device="meta"),
        "of the class .*Named": torch.ones(2).as_subclass(Named),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
    }

    for words, tensor in kinds.items():
        torch.save({"w": tensor}, tmp_path / "model.pt")
        with pytest.raises(UnsupportedCheckpoint, match=words):
            open_checkpoint(tmp_path / "model.pt")


# Zip archives -------------------------------------------------------------------------------------------------


def test_a_compressed_archive_is_refused_not_mapped(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "model.pt", {"w": View()}, {"0": bytes(40)}, compression=zipfile.ZIP_DEFLATED)

    with pytest.raises(UnsupportedCheckpoint, match=r"compressed .*without compression"):
        open_checkpoint(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = bytes(2**24)
    path = zip_file(tmp_path / "bomb.pt", bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20

    with pytest.raises(UnsupportedCheckpoint, match="compressed"):
        open_checkpoint(path)


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "model.pt", {"w": View(), "v": View(Stored("1"))}, {"0": TEN_FLOATS, "1": TEN_FLOATS})
    data = bytearray(path.read_bytes())
    second = data.rindex(b"archive/data/1") - 46  # its entry in the directory
    first = data.rindex(b"archive/data/0") - 46
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    path.write_bytes(data)

    with pytest.raises(CorruptCheckpoint, match="reaches into what follows"):
        open_checkpoint(path)


def test_a_member_that_claims_more_bytes_than_the_file_has_is_refused(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "model.pt", {"w": View(Stored(count=2**20), 0, (2**20,))})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"archive/data/0") - 46
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**22, 2**22)
    path.write_bytes(data)

    with pytest.raises(CorruptCheckpoint, match="4194304 bytes reaches into"):
        open_checkpoint(path)


def test_a_member_that_is_not_where_the_directory_says_is_refused(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "model.pt", {"w": View()})
    data = bytearray(path.read_bytes())
    local = data.index(b"archive/data/0") - 30
    for change in (slice(local, local + 2), slice(local + 28, local + 30)):  # its mark; the length of its extra field
        changed = bytearray(data)
        changed[change] = b"\xee\xee"
        path.write_bytes(changed)
        with pytest.raises(CorruptCheckpoint, match="data/0 is not where the archive says"):
            open_checkpoint(path)


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "model.pt", {"w": View()})
    data = path.read_bytes()

    for size in (100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptCheckpoint, match="directory at its end is missing or broken"):
            open_checkpoint(path)


def test_archives_of_other_things_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.zeros(2))
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with zipfile.ZipFile(tmp_path / "wrapped.zip", "w") as archive:
        archive.writestr("model.safetensors", b"weights")

    for name, words in {"arrays.npz": "a.npy", "empty.zip": "nothing", "wrapped.zip": "model.safetensors"}.items():
        with pytest.raises(NotACheckpoint, match=f"a zip archive of something else .{words}"):
            open_checkpoint(tmp_path / name)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    code = {"archive/code/__torch__.py": b"def forward(self): ...", "archive/constants.pkl": pickled(())}
    path = zip_file(tmp_path / "script.pt", {"w": View()}, more=code)

    with pytest.raises(UnsupportedCheckpoint, match=r"TorchScript program.*state_dict\(\)"):
        open_checkpoint(path)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zip_file(tmp_path / "model.pt", {"w": View()}, more={"archive/data/0": TEN_FLOATS})

    with pytest.raises(CorruptCheckpoint, match="two members archive/data/0"):
        open_checkpoint(path)


@pytest.mark.parametrize(("order", "loads"), [(b"little", True), (b"big", False), (b"middle", False)])
def test_the_byte_order_of_an_archive_counts(order: bytes, loads: bool, tmp_path: Path) -> None:
    path = zip_file(tmp_path / "model.pt", {"w": View()}, more={"archive/byteorder": order})

    if loads:
        assert open_checkpoint(path)["w"].tolist() == list(range(10))
    else:
        with pytest.raises(UnsupportedCheckpoint, match="byte order"):
            open_checkpoint(path)


# Legacy files -------------------------------------------------------------------------------------------------


def test_a_cut_legacy_file_says_how_much_is_there(tmp_path: Path) -> None:
    path = legacy_file(tmp_path / "model.pt", {"w": View(Stored(count=1000), 0, (1000,))}, {"0": bytes(4000)})
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 2000])

    with pytest.raises(CorruptCheckpoint, match=rf"has {size - 2000} bytes, expected {size} \(5\d\.\d % present\)"):
        open_checkpoint(path)


def test_a_legacy_file_whose_parts_disagree_is_refused(tmp_path: Path) -> None:
    def write(**changes: object) -> Path:
        return legacy_file(tmp_path / "model.pt", {"w": View()}, **changes)  # type: ignore[arg-type]

    faults: dict[str, Callable[[], Path]] = {
        "expected": lambda: write(tail=b"more"),
        "its list of storages": lambda: write(keys=pickled(["0", "0"])),
        "its list of storages is": lambda: write(keys=pickled([["0"]])),
        "its list of storages is not": lambda: write(keys=pickled(3)),
    }

    for words, build in faults.items():
        with pytest.raises(CorruptCheckpoint, match=words):
            open_checkpoint(build())
    with pytest.raises(UnsupportedCheckpoint, match="byte order"):
        open_checkpoint(write(little_endian=False))
    with pytest.raises(UnsupportedCheckpoint, match="unknown protocol"):
        open_checkpoint(write(protocol=1002))


def test_a_count_that_contradicts_the_pickle_is_refused(tmp_path: Path) -> None:
    path = legacy_file(tmp_path / "model.pt", {"w": View()})
    data = path.read_bytes()
    path.write_bytes(data[:-48] + struct.pack("<q", 9) + data[-40:])

    with pytest.raises(CorruptCheckpoint, match="storage 0 has 9 elements, expected 10"):
        open_checkpoint(path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_plain_pickle_is_no_checkpoint(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": [1.5, None, True]}, protocol))

    with pytest.raises(UnsupportedCheckpoint, match="a plain pickle that holds a dict of a, not a file of"):
        open_checkpoint(tmp_path / "plain.pkl")


# What is beside weights in files of training programs ---------------------------------------------------------


@pytest.mark.parametrize("write", BOTH, ids=["zip", "legacy"])
def test_harmless_things_beside_the_weights_are_left_out(write: Callable[..., Path], tmp_path: Path) -> None:
    beside = {
        "epoch": 3, "name": "run 7", "loss": 0.25, "done": None, "flags": {1, 2}, "frozen": frozenset({1}),
        "blob": b"\x80\xff", "array": bytearray(b"ab"), "number": np.float64(1.5), "vector": np.arange(3),
        "counter": collections.Counter("aab"), "default": collections.defaultdict(list, {"a": [1]}),
        "size": torch.Size([1, 2]), "device": torch.device("cpu"), "dtype": torch.float16, "complex": 1j,
        (1, ("a", 2)): "a key that is a tuple", 7: "a number", "huge": 2**500, "slice": slice(1, 2),
        "class": torch.optim.Adam,
    }  # fmt: skip

    checkpoint = open_checkpoint(write(tmp_path / "model.pt", {"state_dict": {"w": View()}, **beside}))

    assert list(checkpoint) == ["w"]
    assert checkpoint.wrapper == "state_dict"


@pytest.mark.parametrize(
    ("top", "wrapper"),
    [
        ({"w": View()}, ""),
        ({"state_dict": {"w": View()}}, "state_dict"),
        ({"module": {"w": View()}, "step": 5}, "module"),
        ({"model": {"w": View()}, "rng": View()}, "model"),
        ({"params_ema": {"w": View()}, "model": {"w": View()}}, "params_ema"),
        ({"module": {"v": View()}, "ema": {"w": View()}}, "ema"),
        ({"model": {"v": View()}, "state_dict": {"w": View()}}, "state_dict"),
        ({"model_state_dict": {"w": View()}, "optimizer": {"state": {0: {"exp_avg": View()}}}}, "model_state_dict"),
        ({"state": {"w": View()}, "ema": None}, "state"),
        ({"state_dict": {"model": {"w": View()}, "epoch": 1}}, "state_dict.model"),
        ({"ema": {"decay": View()}, "model": {"w": View(), "v": View(), "u": View()}}, "model"),
    ],
)
def test_wrapped_tensors_are_found(top: dict[str, object], wrapper: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(zip_file(tmp_path / "model.pt", top))

    assert "w" in checkpoint
    assert checkpoint.wrapper == wrapper


@pytest.mark.parametrize(
    ("top", "keys"),
    [
        ({"first": {"w": View()}, "second": {"v": View()}, "step": 1}, ["first.w", "second.v"]),
        ({"state_dict": {"first": {"w": View()}}}, ["first.w"]),
        ({"first": {"w": View()}, "ema": {"v": View()}}, ["v"]),
        ({"first": {"w": View()}, "v": View()}, ["v"]),
    ],
    ids=["several dicts", "inside a wrapper", "a wrapper beside it", "tensors beside it"],
)
def test_names_of_dicts_are_joined_with_those_inside_where_nothing_else_has_tensors(
    top: dict[str, object], keys: list[str], tmp_path: Path
) -> None:
    assert list(open_checkpoint(zip_file(tmp_path / "model.pt", top))) == keys


def test_taking_one_of_several_wrappers_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = zip_file(tmp_path / "model.pt", {"module": {"w": View()}, "ema": {"w": View()}})

    with caplog.at_level("INFO"):
        open_checkpoint(path)

    assert "took the tensors under ema, left those under module" in caplog.text


def test_flat_names_keep_their_prefixes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(zip_file(tmp_path / "model.pt", {"module.w": View(), "module.v": View()}))

    assert list(checkpoint) == ["module.w", "module.v"]
