"""The imports that the server of `processes` does once, before it starts programs."""

import os

import processes  # noqa: F401  (first: it makes the programs importable)

# isort: split
import tiny_network  # noqa: F401  (timm knows it from here on)
import torch

import tinytl.experiment.program
import tinytl.report.write  # noqa: F401

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
