"""Model names to files: what is returned, what is fetched, what is checked, what is said."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from diffsynth import download_model, download_models
from diffsynth.core.digest import sha256_of
from diffsynth.errors import DownloadError, InvalidRequest
from diffsynth.hub.catalog import CATALOG
from diffsynth.hub.listing import safe_parts
from tests.hub.standin import FILE, HUGGING_FACE, LISTING, Hub

LOADED = (
    "t2i/clip_text_encoder/pytorch_model.bin",
    "t2i/mt5/pytorch_model.bin",
    "t2i/model/pytorch_model_ema.pt",
    "t2i/sdxl-vae-fp16-fix/diffusion_pytorch_model.bin",
)


def test_files_are_returned_in_the_order_to_load_and_vocabularies_come_along(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    found = download_models(["HunyuanDiT"], local_dir=tmp_path)

    assert found == [tmp_path / "HunyuanDiT" / name for name in LOADED]
    home = tmp_path / "HunyuanDiT"
    names = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert names == {*LOADED, "t2i/tokenizer/vocab.txt", "t2i/mt5/spiece.model"}


def test_a_second_call_asks_nobody_and_reads_nothing(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = download_models("HunyuanDiT", local_dir=tmp_path)
    hub.log.clear()
    monkeypatch.setattr("diffsynth.core.digest.digest_of", lambda path: pytest.fail(f"{path} was read"))

    assert download_models("HunyuanDiT", local_dir=tmp_path) == first
    assert hub.log == []


def test_verify_asks_anew_and_reads_everything(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    found = download_models("HunyuanDiT", local_dir=tmp_path)
    changed = bytearray(files[LOADED[2]])
    changed[5] ^= 1
    times = found[2].stat()
    found[2].write_bytes(bytes(changed))
    os.utime(found[2], ns=(times.st_atime_ns, times.st_mtime_ns))  # a change that size and time do not show
    hub.log.clear()

    download_models("HunyuanDiT", local_dir=tmp_path, verify=True)

    assert found[2].read_bytes() == files[LOADED[2]]
    assert len(hub.requests("cdn/")) == 1


@pytest.mark.parametrize("damage", ["cut", "emptied", "other bytes", "longer"])
def test_a_damaged_file_is_fetched_again_with_a_line_saying_so(
    damage: str, hub: Hub, files: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = download_models("HunyuanDiT", local_dir=tmp_path)
    content = files[LOADED[1]]
    replaced = {"cut": content[:1000], "emptied": b"", "other bytes": bytes(len(content)), "longer": content + b"x"}
    found[1].write_bytes(replaced[damage])
    os.utime(found[1], (1, 1))

    download_models("HunyuanDiT", local_dir=tmp_path)

    assert found[1].read_bytes() == content
    assert f"{found[1]} is not what hubs publish under this name, and is replaced" in caplog.text


def test_a_file_that_was_put_there_by_hand_is_checked_and_kept(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    target = tmp_path / "HunyuanDiT" / LOADED[2]
    target.parent.mkdir(parents=True)
    target.write_bytes(files[LOADED[2]])

    download_models("HunyuanDiT", local_dir=tmp_path)

    assert not [request for request in hub.requests("cdn/") if "pytorch_model_ema" in request.line]


def test_files_chooses_some(hub: Hub, tmp_path: Path) -> None:
    found = download_models("HunyuanDiT", local_dir=tmp_path, files=["*vae*", "vocab.txt"])

    assert found == [tmp_path / "HunyuanDiT" / LOADED[3]]
    assert (tmp_path / "HunyuanDiT/t2i/tokenizer/vocab.txt").is_file()
    assert not (tmp_path / "HunyuanDiT" / LOADED[0]).exists()
    with pytest.raises(InvalidRequest, match=r"no file of these models fits \*.gguf"):
        download_models("HunyuanDiT", local_dir=tmp_path, files="*.gguf")


def test_two_models_that_share_files_fetch_them_once(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.repositories["Tencent-Hunyuan/Distillation"] = {"pytorch_model_distill.pt": b"distilled"}

    found = download_models(["HunyuanDiT", "HunyuanDiT-Distilled"], local_dir=tmp_path)

    home = tmp_path / "HunyuanDiT"
    assert found == [*(home / name for name in LOADED), home / "t2i/model/pytorch_model_distill.pt"]
    assert len(hub.requests("cdn/")) == 5


def test_a_diffusers_repository_is_fetched_as_its_listing_says(hub: Hub, tmp_path: Path) -> None:
    name = "HunyuanDiT-v1.2-Diffusers"
    hub.repositories[f"Tencent-Hunyuan/{name}"] = {
        "model_index.json": b"{}",
        **{f"{part}/config.json": b"{}" for part in ("transformer", "text_encoder", "text_encoder_2", "vae")},
        "scheduler/scheduler_config.json": b"{}",
        "tokenizer/vocab.txt": b"a",
        "tokenizer_2/spiece.model": b"b",
        "vae/diffusion_pytorch_model.safetensors": b"safe",
        "vae/diffusion_pytorch_model.bin": b"the same once more",
        "transformer/model-00001-of-00002.safetensors": b"1",
        "transformer/model-00002-of-00002.safetensors": b"2",
        "text_encoder/pytorch_model.bin": b"only in this format",
        "README.md": b"not wanted",
    }

    found = download_models(name, local_dir=tmp_path)

    home = tmp_path / name
    assert found == [home]
    assert home.joinpath("text_encoder/pytorch_model.bin").is_file()
    assert home.joinpath("transformer/model-00002-of-00002.safetensors").is_file()
    assert not home.joinpath("vae/diffusion_pytorch_model.bin").exists()
    assert not home.joinpath("README.md").exists()


@pytest.mark.parametrize(
    ("name", "near"),
    [("hunyuan", "HunyuanDiT"), ("HunyuanDit", "HunyuanDiT"), ("x", "HunyuanDiT"), ("sdxl-vae", "SDXL-vae-fp16-fix")],
)
def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path, name: str, near: str) -> None:
    with pytest.raises(InvalidRequest, match=f"no model called '{name}'. Known are: .*{near}"):
        download_models([name], local_dir=tmp_path)


def test_every_entry_of_the_catalogue_can_be_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.repositories.clear()
    for model in CATALOG.values():
        for line in model.lines:
            for repository in line.repositories.values():
                name = line.path.replace("*", "weights.safetensors")
                hub.repositories.setdefault(repository, {})[name] = f"{repository}/{name}".encode()

    fetched = [name for name, model in CATALOG.items() if not model.bundled]
    found = download_models(fetched, ["HuggingFace", "ModelScope"], local_dir=tmp_path)

    assert all(path.exists() for path in found)
    assert {path.name for path in tmp_path.iterdir()} >= {"HunyuanDiT", "HunyuanDiT-v1.2", "sdxl-vae-fp16-fix"}


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/x", "a/../b", "a/./b", "a//b", "C:/x", "a\\b", "a\0b", "", "x" * 300, "a/"),
        *("CON", "a/nul.txt", "Aux/b", "com1.bin", "b.", "b ", "a./b"),
    ],
)
def test_a_name_that_is_not_plain_is_refused(name: str) -> None:
    with pytest.raises(DownloadError, match="no plain name inside its folder"):
        safe_parts(name, "owner/name")


@pytest.mark.parametrize(
    "record",
    [
        "",
        "{",
        "[]",
        "null",
        '{"a": 3}',
        '{"a": {"b": [1e999, "", ""]}}',
        '{"a": {"b": [1]}}',
        "[" * 100_000,
        "\x00\xff",
    ],
)
def test_a_broken_record_only_costs_time(record: str, hub: Hub, tmp_path: Path) -> None:
    download_models("HunyuanDiT", local_dir=tmp_path)
    (tmp_path / ".diffsynth.json").write_text(record, "latin-1")
    hub.log.clear()

    download_models("HunyuanDiT", local_dir=tmp_path)

    assert len(hub.requests(LISTING["ModelScope"])) == 1
    assert hub.requests(FILE["ModelScope"]) == []
    assert json.loads((tmp_path / ".diffsynth.json").read_text("utf-8"))


def test_without_locks_every_process_fetches_for_itself(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffsynth.hub.part.fcntl", None)

    download_models("HunyuanDiT", local_dir=tmp_path)

    assert (tmp_path / "HunyuanDiT" / LOADED[2]).read_bytes() == files[LOADED[2]]
    assert list(tmp_path.rglob("*.part")) == []


def test_a_hash_computed_on_the_way_is_remembered(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = download_models("HunyuanDiT", local_dir=tmp_path)
    monkeypatch.setattr("diffsynth.core.digest.digest_of", lambda path: pytest.fail(f"{path} was read"))

    assert len(sha256_of(found[0])) == 64


def test_parts_of_an_older_revision_are_removed(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.fault("drop", "cdn/.*pytorch_model_ema")
    hub.fault("status", "cdn/.*pytorch_model_ema", times=-1)
    with pytest.raises(DownloadError):
        download_models("HunyuanDiT", "ModelScope", local_dir=tmp_path)
    assert len(list(tmp_path.rglob("*.part"))) == 1
    hub.faults.clear()
    for repository in hub.repositories.values():
        repository[LOADED[2]] = b"a newer revision"

    download_models("HunyuanDiT", "ModelScope", local_dir=tmp_path, verify=True)

    assert (tmp_path / "HunyuanDiT" / LOADED[2]).read_bytes() == b"a newer revision"
    assert list(tmp_path.rglob("*.part")) == []


def test_a_part_goes_on_on_the_other_hub(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.fault("drop", "cdn/ms/.*pytorch_model_ema", share=0.5)
    hub.fault("status", "cdn/ms/.*pytorch_model_ema", times=-1)

    download_models("HunyuanDiT", local_dir=tmp_path)

    second = hub.requests("cdn/hf/.*pytorch_model_ema")
    assert [(request.range, request.sent) for request in second] == [("bytes=450000-", 450_000)]
    assert len(hub.requests(HUGGING_FACE)) == 3


def test_the_messages_are_lines_of_the_package_logger(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fault("corrupt", "cdn/ms/.*pytorch_model_ema", 2)

    with caplog.at_level(logging.INFO, logger="diffsynth"):
        download_models("HunyuanDiT", local_dir=tmp_path)

    ours = [record.getMessage() for record in caplog.records if record.name.startswith("diffsynth")]
    assert sum("expected sha256" in line for line in ours) == 2
    assert "Trying once more" in ours[0]


def test_a_file_without_any_published_hash_is_checked_by_its_size(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "hashes", lambda entry: ("", ""))
    hub.repositories["a/b"] = {"small.txt": b"text"}

    assert download_model("a/b", source="ModelScope", local_dir=tmp_path)[0].read_bytes() == b"text"
    hub.log.clear()
    download_model("a/b", source="ModelScope", local_dir=tmp_path)
    assert hub.log == []


def test_verify_goes_by_what_hubs_say_now(hub: Hub, tmp_path: Path) -> None:
    download_models("HunyuanDiT", "HuggingFace", local_dir=tmp_path)
    for repository in hub.repositories.values():
        repository[LOADED[2]] = b"a newer revision"

    download_models("HunyuanDiT", ["ModelScope", "HuggingFace"], local_dir=tmp_path, verify=True)

    assert (tmp_path / "HunyuanDiT" / LOADED[2]).read_bytes() == b"a newer revision"


def test_a_folder_to_reuse_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="which is no folder"):
        download_models("HunyuanDiT", local_dir=tmp_path, reuse=tmp_path / "nowhere")
