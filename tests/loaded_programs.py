"""The imports that the server of `processes` does once, before it starts programs."""

import gc
import os

import processes  # noqa: F401  (first: it makes the programs importable)

# isort: split
import matplotlib.figure  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.linear_model  # noqa: F401
import tiny_network  # noqa: F401  (timm knows it from here on)
import torch

import tinytl.experiment.program
import tinytl.experiment.sweep.job
import tinytl.report.write  # noqa: F401
from tinytl.experiment.record import fingerprint

fingerprint._code()  # is kept
gc.freeze()  # the programs do not search what is loaded here for garbage
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
