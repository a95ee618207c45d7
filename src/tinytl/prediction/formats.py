"""Write predictions as a table for a person, as CSV or as JSON."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from tinytl.errors import printable
from tinytl.evaluation.confusion import Confusion
from tinytl.prediction.classifier import Prediction
from tinytl.prediction.description import Description

Format = Literal["table", "csv", "json"]
FORMATS: tuple[Format, ...] = ("table", "csv", "json")
PRESENT = 0.5  # the probability from which the table names a label of several
DIGITS = 6  # of probabilities


class Rows:
    """Turns predictions into rows of one form: the `top` classes, or every label of a multilabel task."""

    def __init__(self, description: Description, top: int, with_class: bool) -> None:
        self.names, self.with_class = description.class_names, with_class
        self.several = description.task == "multilabel"
        self.top = min(top, len(self.names))

    def header(self) -> list[str]:
        """The names of the columns of CSV."""
        true = ["true_class"] if self.with_class else []
        if self.several:
            return ["image", *true, *self.names]
        ranks = range(1, self.top + 1)
        return ["image", *true, *(column for n in ranks for column in (f"class_{n}", f"probability_{n}"))]

    def csv_row(self, prediction: Prediction) -> list[Any]:
        """A prediction by the columns of `header`."""
        if self.several:
            figures: list[Any] = [round(p, DIGITS) for p in prediction.probabilities.tolist()]
        else:
            figures = [value for pair in self.likeliest(prediction) for value in pair]
        return [printable(prediction.image), *self.true_class(prediction), *figures]

    def json_row(self, prediction: Prediction) -> dict[str, Any]:
        """A prediction as plain data: the likeliest class, and probabilities by class, the highest first."""
        row: dict[str, Any] = {"image": printable(prediction.image)}
        if self.with_class:
            row["true_class"] = self.true_class(prediction)[0]
        if self.several:
            values = [round(p, DIGITS) for p in prediction.probabilities.tolist()]
            return {**row, "probabilities": dict(zip(self.names, values, strict=True))}
        likeliest = self.likeliest(prediction)
        return {**row, "class": likeliest[0][0], "probabilities": dict(likeliest)}

    def words(self, prediction: Prediction) -> list[str]:
        """The classes in words, `rose 92.1 %`, the likeliest first; of labels those that are likely there."""
        pairs = self.likeliest(prediction)
        if self.several:
            pairs = [(name, p) for name, p in self.likeliest(prediction, len(self.names)) if p >= PRESENT]
        return [f"{printable(name)} {100 * p:.1f} %" for name, p in pairs]

    def likeliest(self, prediction: Prediction, count: int | None = None) -> list[tuple[str, float]]:
        """(name, probability) of the likeliest classes."""
        values, classes = prediction.probabilities.topk(count or self.top)
        return [
            (self.names[c], round(p, DIGITS)) for p, c in zip(values.tolist(), classes.tolist(), strict=True)
        ]

    def true_class(self, prediction: Prediction) -> list[str]:
        """The name of the true class, in a list; an empty list where the true classes are not known."""
        if not self.with_class:
            return []
        return [self.names[prediction.label]] if prediction.label is not None else [""]


def csv_line(row: Sequence[Any]) -> str:
    """A row of CSV, with its end of line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue()


def as_csv(predictions: Sequence[Prediction], rows: Rows) -> str:
    """All predictions as CSV with a header."""
    return "".join(map(csv_line, [rows.header(), *map(rows.csv_row, predictions)]))


def as_json(predictions: Sequence[Prediction], rows: Rows, evaluation: dict[str, Any] | None) -> str:
    """All predictions as one JSON document, with the evaluation if there is one."""
    content = {"images": [rows.json_row(prediction) for prediction in predictions]}
    return json.dumps({**content, **({"evaluation": evaluation} if evaluation else {})}, indent=1) + "\n"


def as_table(predictions: Sequence[Prediction], rows: Rows, width: int | None = None) -> str:
    """All predictions as a table."""
    table = Table("image", "labels" if rows.several else "class")
    if rows.with_class:
        table.add_column("true class")
    for number in range(1, 1 if rows.several else rows.top):
        table.add_column(f"{number + 1}.")
    for prediction in predictions:
        words = [", ".join(rows.words(prediction)) or "none"] if rows.several else rows.words(prediction)
        true = [printable(name) for name in rows.true_class(prediction)]
        table.add_row(printable(prediction.image), words[0], *true, *words[1:])
    return _text(table, width)


def accuracies(confusion: Confusion) -> str:
    """Accuracy and balanced accuracy in words."""
    return f"accuracy {confusion.accuracy:.4f}, balanced {confusion.balanced_accuracy:.4f}"


def as_evaluation(confusion: Confusion, width: int | None = None) -> str:
    """Accuracy, and a table of the recall of each class."""
    table = Table("class", "images", "recall")
    for name, figures in confusion.by_class().items():
        recall = figures["recall"]
        table.add_row(printable(name), str(figures["images"]), "-" if recall is None else f"{recall:.1%}")
    table.add_row("all", str(sum(confusion.images)), f"{confusion.accuracy:.1%}", style="bold")
    return f"{_text(table, width)}{accuracies(confusion)}\n"


def _text(table: Table, width: int | None) -> str:
    """The text of a table; it is only as wide as a terminal if it is written to one."""
    text = io.StringIO()
    Console(file=text, width=width or 10_000, markup=False, highlight=False).print(table)
    return text.getvalue()
