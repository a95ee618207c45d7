"""Export the network of a run or an adapter to ONNX, torch.export or ExecuTorch, checked in that runtime.

python src/export.py adapter=outputs/NAME                              # outputs/NAME/model.onnx
python src/export.py adapter=outputs/NAME format=torch output=flowers.pt2
python src/export.py adapter=outputs/NAME images=FOLDER weights=float32

FILE.json beside the file names classes, pixels and how the file was checked. ONNX needs
`pip install -e '.[export]'`, ExecuTorch `pip install -e '.[executorch]'`.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from tinytl.errors import UserError
from tinytl.experiment.terminal.error_exit import one_line_errors
from tinytl.experiment.terminal.options import key_values
from tinytl.experiment.validation.numbers import Range, require
from tinytl.export.check_images import check_images
from tinytl.export.formats import FORMATS, FormatName, need_packages
from tinytl.export.show import show
from tinytl.export.write import export
from tinytl.prediction.adapter import load_adapter


@dataclass
class Options:
    """The command line."""

    adapter: str = ""  # a finished run's folder, an adapter's folder or file
    format: str | None = None  # onnx, torch or executorch; null: by the suffix of output, else onnx
    output: str | None = None  # file to write; null: model.onnx (.pt2, .pte) in the run's or adapter's folder
    weights: str = "int8"  # frozen weights: int8 keeps them in 8 bits where the format can; or float32
    images: str | None = None  # folder of images to check on; null: the run's test images, else noise
    check_images: int = 50  # how many images to check on, at most


def main() -> None:
    """Check the options, export, print what was written."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    with one_line_errors():
        options = key_values(sys.argv[1:], Options)
        name = checked(options)
        adapter = load_adapter(options.adapter)
        path = Path(options.output or default_output(options.adapter, name))
        images = check_images(adapter, options.images, options.check_images)
        show(export(adapter, name, options.weights == "int8", path, images))


def checked(options: Options) -> FormatName:
    """Return the format. Raises UserError naming the first option that cannot be right."""
    if not options.adapter:
        raise UserError("adapter=... must be given; --help lists all options")
    suffix = Path(options.output or "").suffix.lower()
    by_suffix = next((name for name, form in FORMATS.items() if form.suffix == suffix), None)
    name = options.format or by_suffix or "onnx"
    if name not in FORMATS:
        raise UserError(f"format={name}: unknown; one of {', '.join(FORMATS)}")
    if options.output and FORMATS[name].suffix != suffix:
        raise UserError(f"output={options.output}: a file of format={name} ends in {FORMATS[name].suffix}")
    if options.weights not in ("int8", "float32"):
        raise UserError(f"weights={options.weights}: must be int8 or float32")
    require("check_images", options.check_images, Range(1, 1e6, "images"))
    need_packages(name)
    return name


def default_output(adapter: str, name: FormatName) -> Path:
    """The file that is written unless `output` names one: in the adapter's folder."""
    path = Path(adapter).expanduser()
    return (path if path.is_dir() else path.parent) / f"model{FORMATS[name].suffix}"


if __name__ == "__main__":
    main()
