"""Thousands of images that survive anything: a job in, a folder of images and a ledger out.

The order of reading is that of the data: ``jobs`` (files → rows), ``expand`` (rows → entries), ``plan`` (entries →
units), ``resume`` (what is there already), ``drawing`` (units → images), ``output`` and ``publish`` (images → files),
``ledger`` (what is finished), ``storage`` (where), ``runner`` and ``run`` (all of it). Several processes: ``shards``
without talking to one another; ``worker``, ``cluster``, ``driver`` and ``distributed`` with a driver that hands out
units.
"""

from diffsynth.batch.plan import Item, Plan, Unit, make_plan
from diffsynth.batch.progress import Progress
from diffsynth.batch.run import read_entries, run_batch, run_plan
from diffsynth.batch.shards import Shard

__all__ = ["Item", "Plan", "Progress", "Shard", "Unit", "make_plan", "read_entries", "run_batch", "run_plan"]
