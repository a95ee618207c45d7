"""Write tables and an HTML page from finished runs.

python src/report.py                                   # outputs/ -> report/
python src/report.py outputs=outputs output_dir=report
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from tinytl.experiment.terminal.options import key_values
from tinytl.experiment.terminal.program import one_line_errors, quiet_libraries
from tinytl.report.write import write_report


@dataclass
class Options:
    """The command line."""

    outputs: str = "outputs"  # folder that holds the runs
    output_dir: str = "report"  # folder that the report is written into


def main() -> None:
    """Write the report, and print where it is."""
    quiet_libraries()
    with one_line_errors():
        options = key_values(sys.argv[1:], Options)
        folder = Path(options.output_dir)
        print(write_report(Path(options.outputs), folder))
        print(folder / "index.html")


if __name__ == "__main__":
    main()
