"""Export several backbones in several forms, and print a table of sizes and differences in Markdown.

python tests/export_table.py images=FOLDER adapters=outputs/A,outputs/B         # of finished runs
python tests/export_table.py images=FOLDER models=mobilenetv2_100,resnet50      # with random weights

The files go into a temporary folder. Differences are the largest of the logits, relative to the largest
logit, in the format's own runtime. `top-1` is printed where `images` has class folders of the adapter.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from trained_adapters import write_run

from tinytl.experiment.terminal.options import key_values
from tinytl.export.check_images import check_images
from tinytl.export.formats import FORMATS
from tinytl.export.write import export
from tinytl.prediction.adapter import Adapter, load_adapter


@dataclass
class Options:
    """The command line."""

    images: str = ""  # folder of images to compare on
    adapters: list[str] = field(default_factory=list)  # folders of finished runs
    models: list[str] = field(default_factory=list)  # timm's names, to export with random weights
    norm: str = "bn_frozen"  # of `models`
    resolution: int = 128  # of `models`, pixels
    forms: list[str] = field(default_factory=lambda: ["onnx:float32", "onnx:int8", "torch:int8"])
    count: int = 50  # images to compare on


def main() -> None:
    """Print a row for each adapter and form as soon as it is known."""
    options = key_values(sys.argv[1:], Options)
    print("| network | form | MB | largest difference | same class | top-1 before | after |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name, adapter in adapters(options):
        images = check_images(adapter, options.images or None, options.count)
        for form in options.forms:
            kind, _, weights = form.partition(":")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"model{FORMATS[kind].suffix}"  # type: ignore[index]
                exported = export(adapter, kind, weights == "int8", path, images)  # type: ignore[arg-type]
            check = exported.comparison
            top1 = ["-" if top1 is None else f"{top1:.3f}" for top1 in (check.top1_before, check.top1_after)]
            figures = [f"{exported.size_bytes / 1e6:.2f}", f"{check.logits:.0e}"]
            same = f"{check.same_class} of {check.images}"
            print(f"| {' | '.join([name, f'{kind}, {weights}', *figures, same, *top1])} |", flush=True)


def adapters(options: Options) -> Iterator[tuple[str, Adapter]]:
    """Yield names and adapters: those of runs, and new ones of `models`."""
    for folder in options.adapters:
        yield Path(folder).name, load_adapter(folder)
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            write_run(Path(folder), options.norm, "bias", model=model, resolution=options.resolution)
            yield model, load_adapter(folder)


if __name__ == "__main__":
    main()
