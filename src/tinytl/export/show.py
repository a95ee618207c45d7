"""Print what was exported."""

from tinytl.export.write import Exported, beside


def show(exported: Exported) -> None:
    """Print the files, their sizes, and how far the results are from PyTorch's."""
    check = exported.comparison
    print(f"{exported.path} ({exported.size_bytes / 1e6:.2f} MB), {beside(exported.path)}")
    print(
        f"{exported.in_8_bits:,} of {exported.frozen:,} frozen weights in 8 bits; all tensors in float32 are "
        f"{exported.float32_bytes / 1e6:.2f} MB"
    )
    print(
        f"largest difference from PyTorch on {check.images} images ({check.origin}): probabilities "
        f"{check.probabilities:.1e}, logits {check.logits:.1e} of the largest; "
        f"the same class for {check.same_class}"
    )
    if check.top1_before is not None:
        print(f"top-1 {check.top1_before:.4f} in PyTorch, {check.top1_after:.4f} in the exported file")
