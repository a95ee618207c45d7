"""Predict the classes of images by a run, an adapter or an exported file.

python src/predict.py adapter=outputs/NAME images=FOLDER
python src/predict.py adapter=outputs/NAME images=FOLDER output=predictions.csv    # or .json
python src/predict.py adapter=flowers.onnx images=FILE format=json
python src/predict.py adapter=outputs/NAME images=FOLDER watch=true    # each new image, until Ctrl-C

A folder with class folders is evaluated: accuracy, recall of each class, and with output= the confusion
matrix as a picture and as CSV. Predictions go to stdout, messages to stderr.
"""

import logging
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports without a traceback

import torch

from tinytl.errors import UserError
from tinytl.experiment.terminal.error_exit import one_line_errors
from tinytl.experiment.terminal.options import key_values
from tinytl.experiment.validation.devices import ACCELERATORS, chosen
from tinytl.experiment.validation.numbers import NUMBERS, Range, require
from tinytl.prediction.classifier import open_classifier
from tinytl.prediction.formats import FORMATS, Format, Rows
from tinytl.prediction.predict_all import pictures_for, predict_all, show
from tinytl.prediction.predict_arrivals import predict_arrivals
from tinytl.prediction.watch import watch


@dataclass
class Options:
    """The command line."""

    adapter: str = ""  # a finished run's folder, an adapter's folder or file, or an exported file
    images: str = ""  # an image, or a folder with images at any depth
    top: int = 3  # how many of the likeliest classes to name
    format: str | None = None  # table, csv or json; null: by the suffix of output, else table
    output: str | None = None  # file to write the predictions into; null: stdout
    evaluate: bool | None = None  # compare with the folders' names; null: if all images lie in folders
    skip_broken: bool = False  # leave out images that cannot be read, and name them
    batch_size: int = 8  # images computed at a time; 1 takes least memory
    device: str = "auto"  # auto, cpu, gpu, cuda or mps; exported files run on the CPU
    watch: bool = False  # predict the images that arrive in the folder, until Ctrl-C
    every: float = 1.0  # seconds between two looks into a watched folder


def main() -> None:
    """Check the options, open the classifier, predict."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # set so for the time of the imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with one_line_errors():
        options = key_values(sys.argv[1:], Options)
        kind, device = checked(options)
        try:
            predict(options, kind, device)
        except KeyboardInterrupt:
            sys.exit(0 if options.watch else 128 + signal.SIGINT)


def checked(options: Options) -> tuple[Format, torch.device]:
    """Return the format and the device. Raises UserError naming the first option that cannot be right."""
    for key in ("adapter", "images"):
        if not getattr(options, key):
            raise UserError(f"{key}=... must be given; --help lists all options")
    require("batch_size", options.batch_size, NUMBERS["batch_size"])
    require("top", options.top, Range(1, 1e6, "classes"))
    require("every", options.every, Range(0, 86400, "seconds"))
    suffix = Path(options.output or "").suffix.lower().removeprefix(".")
    kind = options.format or (suffix if suffix in FORMATS else "table")
    if kind not in FORMATS:
        raise UserError(f"format={kind}: unknown; one of {', '.join(FORMATS)}")
    if options.watch and (options.output or options.evaluate):
        raise UserError("watch=true writes a line an image to stdout; no output= or evaluate= goes with it")
    device = chosen(options.device) if options.device in ACCELERATORS else None
    if device is None:
        raise UserError(f"device={options.device}: PyTorch finds none here; auto and cpu work")
    return kind, torch.device(device)  # type: ignore[return-value]


def predict(options: Options, kind: Format, device: torch.device) -> None:
    """Predict as the options say."""
    arrivals = watch(Path(options.images).expanduser(), options.every) if options.watch else None
    classifier = open_classifier(options.adapter, device)
    if arrivals is not None:
        predict_arrivals(classifier, arrivals, Rows(classifier.description, options.top, False), kind)
        return
    pictures = pictures_for(classifier, options.images, options.evaluate, options.skip_broken)
    rows = Rows(classifier.description, options.top, pictures.labels is not None)
    predictions = predict_all(classifier, pictures, options.batch_size)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    show(predictions, rows, kind, Path(options.output) if options.output else None, width)


if __name__ == "__main__":
    main()
