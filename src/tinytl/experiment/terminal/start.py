"""How the programs that Hydra configures begin: help at once, everything else after the imports."""

import sys
from typing import Literal

from tinytl.experiment.terminal.help import help_text, wants_help

CONFIGS = {"run": "config", "pretrain": "pretrain"}  # program -> its file in conf/


def start(program: Literal["run", "pretrain"]) -> None:
    """Be `python src/PROGRAM.py`."""
    if wants_help(sys.argv[1:]):
        print(help_text(program, CONFIGS[program]))
        return
    from tinytl.experiment import program as programs  # seconds of imports

    {"run": programs.run_program, "pretrain": programs.pretrain_program}[program]()
