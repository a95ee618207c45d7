"""Write tables and an HTML page from finished runs, pack the runs into one file, or draw one picture of them.

python src/report.py                                     # outputs/ -> report/
python src/report.py outputs=FOLDER output_dir=report    # or outputs=FILE.jsonl: a packed file
python src/report.py outputs=FOLDER pack=FILE.jsonl      # a run a line; no report
python src/report.py outputs=FOLDER picture=FILE.png where=norm=gn,resolution=224    # accuracy against memory
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from tinytl.experiment.terminal.error_exit import one_line_errors, quiet_libraries
from tinytl.experiment.terminal.options import key_values
from tinytl.report.packed import pack
from tinytl.report.picture import draw
from tinytl.report.write import write_report


@dataclass
class Options:
    """The command line."""

    outputs: str = "outputs"  # folder of the runs, or a packed file
    output_dir: str = "report"  # folder that the report is written into
    pack: str = ""  # the packed file to write, in place of a report
    picture: str = ""  # the PNG file to draw, in place of a report
    where: list[str] = field(default_factory=list)  # KEY=VALUE of the runs in the picture; none: all runs


def main() -> None:
    """Write the report, or the packed file, and print where it is."""
    quiet_libraries()
    with one_line_errors():
        options = key_values(sys.argv[1:], Options)
        outputs, folder = Path(options.outputs), Path(options.output_dir)
        if options.pack:
            print(pack(outputs, Path(options.pack)))
        elif options.picture:
            print(draw(outputs, Path(options.picture), options.where))
        else:
            print(write_report(outputs, folder))
            print(folder / "index.html")


if __name__ == "__main__":
    main()
