"""Fetch a model with a progress line of your own, or say in one sentence why it could not be had."""

from diffsynth import DiffSynthError, download_models
from diffsynth.hub.progress import DownloadReport


def show(report: DownloadReport) -> None:
    """Print how far the whole job is."""
    print(f"{report.files_done}/{report.files} files, {report.bytes_done / 1e6:.1f} of {report.bytes / 1e6:.1f} MB")


try:
    for path in download_models(["HunyuanDiT"], ["HuggingFace", "ModelScope"], on_progress=show):
        print(path)
except DiffSynthError as error:
    print(error)
