"""Draw a job over guidance weights and seeds; lay it out as a plot, as a page, and tell why two images differ."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, compare_images, download_models
from diffsynth.batch import run_batch
from diffsynth.batch.grid import make_plot
from diffsynth.batch.records import Folder
from diffsynth.batch.report import write_report

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)

job = [{"prompt": "a lighthouse in fog, woodcut", "height": 1024, "width": 1024, "num_inference_steps": 25}]
run_batch(pipe, job, "lighthouses", sweeps={"cfg_scale": [3.0, 7.5], "seed": [0, 1]})  # goes on where it was stopped

folder = Folder.read("lighthouses")
(sheet,) = make_plot(folder, x="cfg_scale", y="seed").sheets(cell=512)
sheet.draw().save("lighthouses.png")
write_report(folder, "lighthouses.html")

first, second = (folder.path / record.name for record in folder.drawn[:2])
print(compare_images(first, second))
