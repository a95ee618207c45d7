"""Start the programs that Hydra configures. Help is printed at once, before slow imports."""

import gc
import sys
from typing import Literal

from tinytl.experiment.terminal.help import help_text, wants_help

CONFIGS = {"run": "config", "pretrain": "pretrain"}  # program -> its file in conf/


def start(program: Literal["run", "pretrain"]) -> None:
    """Run `python src/PROGRAM.py`."""
    if wants_help(sys.argv[1:]):
        print(help_text(program, CONFIGS[program]))
        return
    # Nearly all objects that the imports make stay: to search them for garbage takes a fifth of the time.
    gc.disable()
    from tinytl.experiment import program as programs  # takes seconds

    gc.freeze()
    gc.enable()
    {"run": programs.run_program, "pretrain": programs.pretrain_program}[program]()
