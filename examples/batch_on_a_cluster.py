"""Draw a job with two worker processes of this machine; with the address of a Ray, with all its accelerators."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models
from diffsynth.batch import read_entries
from diffsynth.batch.distributed import run_distributed


def load() -> HunyuanDiTImagePipeline:
    """Load the pipeline; every worker does it in a process of its own."""
    manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
    return HunyuanDiTImagePipeline.from_model_manager(manager)


job = [{"prompt": f"a fox in the snow, number {number}"} for number in range(4)]
defaults = {"height": 1024, "width": 1024, "num_inference_steps": 20}
entries = read_entries(job, HunyuanDiTImagePipeline.request_type, defaults=defaults)
progress = run_distributed(load, entries, "many", workers=2)  # address="10.0.0.1:6379"
print(f"{progress.drawn} drawn, {progress.finished} were there, {len(progress.failures)} failed")
