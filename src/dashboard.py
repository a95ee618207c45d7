"""Write the W&B workspace and report of a project.

python src/dashboard.py entity=ME project=tinytl
python src/dashboard.py entity=ME group=table2          # runs of one sweep
python src/dashboard.py dry_run=true json=spec.json     # what would be saved; needs no network, no key

The panels plot what runs log to W&B. The program needs `pip install -e '.[dashboards]'`.
"""

import sys

from tinytl.errors import UserError
from tinytl.experiment.terminal.error_exit import one_line_errors
from tinytl.experiment.terminal.options import key_values
from tinytl.experiment.tracking.dashboard import Options, save, show, specification


def main() -> None:
    """Print the specification, or save workspace and report and print where they are."""
    with one_line_errors():
        options = key_values(sys.argv[1:], Options)
        if options.dry_run:
            show(specification(options), options.json)
            return
        if options.entity is None:
            raise UserError("entity=... must be given: your W&B user or team (or dry_run=true)")
        if options.json:
            raise UserError("json=... goes with dry_run=true")
        for url in save(options):
            print(url)


if __name__ == "__main__":
    main()
