from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.errors import CorruptCheckpoint, MissingShard, NotACheckpoint, UnsafeCheckpoint

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_index(folder: Path, weight_map: object, name: str = "model.safetensors.index.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))
    return path


def write_shards(folder: Path) -> dict[str, Tensor]:
    tensors = {"a": torch.arange(3.0), "b": torch.arange(4).half()}
    save_file({"a": tensors["a"]}, folder / ONE)
    save_file({"b": tensors["b"]}, folder / TWO)
    return tensors


def test_an_index_its_folder_and_the_list_of_shards_load_alike(tmp_path: Path) -> None:
    tensors = write_shards(tmp_path)
    index = write_index(tmp_path, {"a": ONE, "b": TWO})

    places: tuple[Path | str | list[Path | str], ...] = (
        index,
        tmp_path,
        f"{tmp_path}/",
        [tmp_path / ONE, str(tmp_path / TWO)],
    )
    for named in places:
        checkpoint = open_checkpoint(named)
        assert {key: tensor.tolist() for key, tensor in checkpoint.items()} == {
            key: tensor.tolist() for key, tensor in tensors.items()
        }
        assert checkpoint.format == "safetensors, 2 shards"
        assert checkpoint.files == (tmp_path / ONE, tmp_path / TWO)
        assert checkpoint.nbytes == sum(file.stat().st_size for file in checkpoint.files)
    assert open_checkpoint(index).path == index
    assert open_checkpoint(tmp_path).path == tmp_path
    assert open_checkpoint([tmp_path / TWO, tmp_path / ONE]).path == tmp_path / TWO


def test_pickled_shards_load(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    write_index(tmp_path, names, "pytorch_model.bin.index.json")

    checkpoint = open_checkpoint(tmp_path)

    assert checkpoint.format == "torch zip, 2 shards"
    assert checkpoint["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "target", ["../../etc/passwd", "/etc/passwd", "..\\x", "a\0b", "", ".", "..", "model.safetensors.index.json", "c:x"]
)
def test_an_index_that_points_elsewhere_is_refused(target: str, tmp_path: Path) -> None:
    write_shards(tmp_path)
    index = write_index(tmp_path, {"a": ONE, "b": target})

    with pytest.raises(UnsafeCheckpoint, match="no file beside it") as caught:
        open_checkpoint(index)
    assert "\0" not in str(caught.value)


def test_an_index_of_safetensors_that_points_to_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / ONE)
    write_index(tmp_path, {"a": ONE})

    with pytest.raises(UnsafeCheckpoint, match="a torch zip file, not safetensors"):
        open_checkpoint(tmp_path)


def test_all_missing_shards_are_named_at_once(tmp_path: Path) -> None:
    save_file({"b": torch.zeros(1)}, tmp_path / "2.safetensors")
    names = {"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors", "d": "n" * 300}
    write_index(tmp_path, names)
    (tmp_path / "3.safetensors").symlink_to(tmp_path / "gone")

    with pytest.raises(MissingShard, match=r"lists 4 shards of which 3 are missing: 1\.safetensors, 3\.safetensors, n"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_is_not_where_the_index_says_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path)

    write_index(tmp_path, {"a": ONE, "b": TWO, "c": TWO})
    with pytest.raises(CorruptCheckpoint, match=f"says c lies in {TWO}, but it is in no shard"):
        open_checkpoint(tmp_path)

    write_index(tmp_path, {"a": TWO, "b": TWO, "x": ONE})
    with pytest.raises(CorruptCheckpoint, match=f"says a lies in {TWO}, but it lies in {ONE}"):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_shards_must_be_the_same_in_both(tmp_path: Path) -> None:
    nan = torch.tensor([float("nan"), -0.0])
    save_file({"a": nan, "b": torch.ones(1)}, tmp_path / ONE)
    for other, same in ((nan, True), (nan.abs(), False), (nan.double(), False), (nan.view(1, 2), False)):
        save_file({"a": other, "c": torch.ones(1)}, tmp_path / TWO)
        if same:
            assert sorted(open_checkpoint([tmp_path / ONE, tmp_path / TWO])) == ["a", "b", "c"]
        else:
            with pytest.raises(CorruptCheckpoint, match=f"a lies in {ONE} and, with another content, in {TWO}"):
                open_checkpoint([tmp_path / ONE, tmp_path / TWO])


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("{", CorruptCheckpoint, "not JSON"),
        ('{"a":' * 100_000, CorruptCheckpoint, "nested too deeply|not JSON"),
        ('{"weight_map": {}}', CorruptCheckpoint, "weight_map is empty"),
        ('{"weight_map": {"a": 3}}', CorruptCheckpoint, "something else than text"),
        ('{"weight_map": {"a": "x", "a": "y"}}', CorruptCheckpoint, "names a twice"),
        ('{"architectures": ["Net"]}', NotACheckpoint, "a JSON text, not weights"),
        ("[]", CorruptCheckpoint, "no JSON object"),
    ],
)
def test_a_broken_index_is_refused(text: str, kind: type[Exception], words: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)

    with pytest.raises(kind, match=words):
        open_checkpoint(tmp_path)


def test_a_shard_that_is_an_index_or_a_folder_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "other.json"}, "first.bin.index.json")
    (tmp_path / "other.json").write_text('{"weight_map": {"a": "first.bin.index.json"}}')
    with pytest.raises(NotACheckpoint, match=r"other\.json: is a JSON text"):
        open_checkpoint(tmp_path)

    (tmp_path / "other.json").unlink()
    (tmp_path / "other.json").mkdir()
    with pytest.raises(NotACheckpoint, match=r"other\.json: is a folder"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["weights.pt"], "weights.pt"),
        (["x.SAFETENSORS"], "x.SAFETENSORS"),
        (["model.safetensors", "pytorch_model.bin", "training_args.bin"], "model.safetensors"),
        (["pytorch_model.bin", "optimizer.pt"], "pytorch_model.bin"),
        (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors", "sdxl_vae.safetensors"],
         "diffusion_pytorch_model.safetensors"),
        (["model.fp16.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.fp16.safetensors"], "model.fp16.safetensors"),
        (["vae.fp16.safetensors", "vae.safetensors", "vae.bin"], "vae.safetensors"),
        (["net.ckpt", "net.safetensors", ".hidden.safetensors"], "net.safetensors"),
    ],
)  # fmt: skip
def test_a_folder_stands_for_its_weight_file(names: list[str], taken: str, tmp_path: Path) -> None:
    for name in names:
        save_file({name: torch.zeros(1)}, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "modeling_custom.py").write_text("raise SystemExit")

    assert list(open_checkpoint(tmp_path)) == [taken]


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model_ema.pt", "pytorch_model_module.pt"],
        ["net-v1.1.safetensors", "net-v1.2.safetensors"],
        ["model.safetensors", "diffusion_pytorch_model.safetensors"],
        ["net.fp16.safetensors", "net.bf16.safetensors"],
        ["a.safetensors.index.json", "b.safetensors.index.json"],
    ],
)
def test_a_folder_with_several_weight_files_names_them(names: list[str], tmp_path: Path) -> None:
    for name in names:
        save_file({"a": torch.zeros(1)}, tmp_path / name)

    with pytest.raises(NotACheckpoint, match="a folder with 2 weight files") as caught:
        open_checkpoint(tmp_path)
    assert all(name in str(caught.value) for name in names)


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="without a weight file; it holds nothing"):
        open_checkpoint(tmp_path)

    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.Net"}}')
    (tmp_path / "vae").mkdir()
    with pytest.raises(NotACheckpoint, match=r"it holds config.json, vae/\. Name one of its folders"):
        open_checkpoint(tmp_path)


def test_no_path_at_all_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="at least one path"):
        open_checkpoint([])


def test_shards_that_are_missing_from_a_list_are_all_named(tmp_path: Path) -> None:
    names = [f"net-0000{number}-of-00005.bin" for number in range(1, 6)]
    for name in names:
        torch.save({name: torch.ones(1)}, tmp_path / name)

    assert len(open_checkpoint([tmp_path / name for name in names])) == 5
    with pytest.raises(MissingShard, match=f"5 shards of which 3 are missing: {names[0]}, {names[2]}, {names[4]}"):
        open_checkpoint([tmp_path / names[3], tmp_path / names[1]])


def test_a_shard_alone_is_refused_with_advice(tmp_path: Path) -> None:
    write_shards(tmp_path)

    with pytest.raises(MissingShard, match=f"1 are missing: {TWO}. Name all shards, or the folder with their index"):
        open_checkpoint(tmp_path / ONE)

    (tmp_path / TWO).unlink()
    with pytest.raises(MissingShard, match=TWO):
        open_checkpoint(tmp_path)


def test_shards_in_a_folder_without_an_index_have_to_be_named(tmp_path: Path) -> None:
    write_shards(tmp_path)

    with pytest.raises(NotACheckpoint, match="no index that lists these shards, so name all of them"):
        open_checkpoint(tmp_path)


def test_one_shard_of_one_is_a_whole_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00001.safetensors")

    assert list(open_checkpoint(tmp_path / "model-00001-of-00001.safetensors")) == ["a"]


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("model.safetensors.index.fp16.json", "model.fp16-0000{}-of-00002.safetensors"),
        ("model.safetensors.index.fp16.json", "model-0000{}-of-00002.fp16.safetensors"),
        ("pytorch_model.bin.index.fp16.json", "pytorch_model.fp16-0000{}-of-00002.bin"),
    ],
)
def test_shards_of_a_variant_load_when_there_is_nothing_else(index: str, shard: str, tmp_path: Path) -> None:
    for number, key in enumerate("ab", start=1):
        save = torch.save if shard.endswith(".bin") else save_file
        save({key: torch.ones(1).half()}, tmp_path / shard.format(number))
    write_index(tmp_path, {"a": shard.format(1), "b": shard.format(2)}, index)

    assert open_checkpoint(tmp_path)["a"].dtype is torch.float16
    write_shards(tmp_path)
    write_index(tmp_path, {"a": ONE, "b": TWO})
    assert open_checkpoint(tmp_path)["a"].dtype is torch.float32


def test_a_whole_file_is_preferred_to_shards_of_a_variant(tmp_path: Path) -> None:
    write_shards(tmp_path)
    write_index(tmp_path, {"a": ONE, "b": TWO}, "net.safetensors.index.fp16.json")
    for name in (ONE, TWO):
        (tmp_path / name).rename(tmp_path / name.replace("model", "net.fp16"))
    save_file({"whole": torch.ones(1)}, tmp_path / "net.safetensors")

    assert list(open_checkpoint(tmp_path)) == ["whole"]


def test_an_old_index_beside_a_whole_file_says_so(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": ONE, "b": TWO})
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")

    with pytest.raises(MissingShard, match=r"model\.safetensors lies beside it: if that is the whole checkpoint"):
        open_checkpoint(tmp_path)
