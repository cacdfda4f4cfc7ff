"""Model names to files: what is returned, what is fetched, what is checked, what is said."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from diffsynth import download_model, download_models
from diffsynth.core.digest import sha256_of
from diffsynth.errors import DownloadError, InvalidRequest
from diffsynth.hub.catalog import CATALOG
from diffsynth.hub.listing import safe_parts
from diffsynth.hub.part import Part
from diffsynth.hub.progress import DownloadReport
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
    monkeypatch.setattr("diffsynth.core.digest._digest", lambda path: pytest.fail(f"{path} was read"))

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


def test_offline_files_that_were_put_there_by_hand_are_used_with_a_warning(
    files: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in files.items():
        path = tmp_path / "HunyuanDiT" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    found = download_models("HunyuanDiT", local_dir=tmp_path, offline=True)

    assert found == [tmp_path / "HunyuanDiT" / name for name in LOADED]
    assert f"{found[0]} is used unchecked" in caplog.text


def test_offline_a_cut_file_is_found_out(hub: Hub, tmp_path: Path) -> None:
    found = download_models("HunyuanDiT", local_dir=tmp_path)
    found[1].write_bytes(b"cut")

    with pytest.raises(DownloadError) as caught:
        download_models("HunyuanDiT", local_dir=tmp_path, offline=True)

    assert "1 of 6 files are not in place" in str(caught.value)
    assert f"{found[1]}: not what was published (3 bytes here, 600,000 there)" in str(caught.value)


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


def test_progress_is_told_for_the_whole_job(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    reports: list[DownloadReport] = []
    hub.fault("drop", f"{FILE['ModelScope']}pytorch_model_ema")
    hub.fault("corrupt", f"{FILE['ModelScope']}diffusion_pytorch_model")

    download_models("HunyuanDiT", local_dir=tmp_path, on_progress=reports.append)

    last = reports[-1]
    wanted = sum(len(content) for name, content in files.items() if name != "README.md")
    assert (last.files_done, last.files, last.bytes_done, last.bytes) == (6, 6, wanted, wanted)
    assert last.rate > 0


def test_nothing_is_shown_where_there_is_no_terminal(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    download_models("HunyuanDiT", local_dir=tmp_path)

    assert capfd.readouterr() == ("", "")


def test_too_little_room_is_told_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))

    with pytest.raises(DownloadError, match=r"0.00 GB free, and 0.00 GB are to be fetched. Nothing was fetched"):
        download_models("HunyuanDiT", local_dir=tmp_path)
    assert hub.requests(FILE["ModelScope"]) == []


def test_a_folder_that_cannot_be_written_is_an_error_with_its_name(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")

    with pytest.raises(DownloadError, match=r"models.* cannot be written"):
        download_models("HunyuanDiT", local_dir=tmp_path / "models")


def test_a_folder_in_the_place_of_a_file_is_an_error_with_its_name(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "HunyuanDiT" / LOADED[2]
    target.mkdir(parents=True)

    with pytest.raises(DownloadError, match=r"pytorch_model_ema.*cannot be written: Is a directory"):
        download_models("HunyuanDiT", local_dir=tmp_path)


def test_a_link_inside_a_models_folder_is_not_followed_out_of_it(hub: Hub, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    home = tmp_path / "models" / "HunyuanDiT" / "t2i"
    home.mkdir(parents=True)
    (home / "model").symlink_to(outside)

    with pytest.raises(DownloadError, match="is a link that leads out of"):
        download_models("HunyuanDiT", local_dir=tmp_path / "models")

    assert list(outside.iterdir()) == []


def test_the_folder_of_a_whole_model_may_be_a_link(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "HunyuanDiT").symlink_to(tmp_path / "large disk")

    download_models("HunyuanDiT", local_dir=tmp_path / "models")

    assert (tmp_path / "large disk" / LOADED[0]).read_bytes() == files[LOADED[0]]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "a/./b", "a//b", "C:/x", "a\\b", "a\0b", "", "x" * 300, "a/"])
def test_a_name_that_is_not_plain_is_refused(name: str) -> None:
    with pytest.raises(DownloadError, match="no plain name inside its folder"):
        safe_parts(name, "owner/name")


@pytest.mark.parametrize("record", ["", "{", "[]", "null", '{"a": 3}', '{"a": {"b": [1]}}', "[" * 100_000, "\x00\xff"])
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
    monkeypatch.setattr("diffsynth.core.digest._digest", lambda path: pytest.fail(f"{path} was read"))

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


def test_a_part_that_is_longer_than_its_file_is_thrown_away(tmp_path: Path) -> None:
    from diffsynth.hub.listing import RemoteFile

    remote = RemoteFile("x", 3, "0" * 64)
    Part(tmp_path / "x", remote).path.write_bytes(b"too long")

    with Part(tmp_path / "x", remote) as part:
        assert part.size == 0


def test_offline_a_folder_that_was_never_listed_is_missing_as_a_whole(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        download_models("HunyuanDiT-v1.2-Diffusers", local_dir=tmp_path, offline=True)

    assert f"{tmp_path}/HunyuanDiT-v1.2-Diffusers/vae/*: not there" in str(caught.value)


def test_verify_goes_by_what_hubs_say_now(hub: Hub, tmp_path: Path) -> None:
    download_models("HunyuanDiT", "HuggingFace", local_dir=tmp_path)
    for repository in hub.repositories.values():
        repository[LOADED[2]] = b"a newer revision"

    download_models("HunyuanDiT", ["ModelScope", "HuggingFace"], local_dir=tmp_path, verify=True)

    assert (tmp_path / "HunyuanDiT" / LOADED[2]).read_bytes() == b"a newer revision"


def test_patterns_that_overlap_fetch_a_file_once(hub: Hub, tmp_path: Path) -> None:
    reports: list[DownloadReport] = []

    found = download_model(
        "modelscope/HunyuanDiT", ["t2i/mt5/*", LOADED[1]], local_dir=tmp_path, on_progress=reports.append
    )

    assert len(found) == 2
    assert reports[-1].bytes_done == reports[-1].bytes == 605_000


def test_a_folder_to_reuse_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="which is no folder"):
        download_models("HunyuanDiT", local_dir=tmp_path, reuse=tmp_path / "nowhere")
