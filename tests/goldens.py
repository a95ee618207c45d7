"""Where reference files lie, and the names that they give to methods."""

from processes import ROOT

SHARED = ROOT.parent / "shared"
# the goldens' names of the methods -> ours
PUBLISHED_METHODS = {
    "last": "last",
    "tinytl-bias": "bias",
    "tinytl-lite": "tinytl_l",
    "tinytl-lite+bias": "tinytl",
    "bn+last": "norm_last",
    "full": "full",
}
