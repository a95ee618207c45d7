"""Do one run: train, test, and write outputs/NAME/results.json.

python src/run.py method=tinytl norm=gn
"""

import signal

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports without a traceback
    from tinytl.experiment.terminal.start import start

    start("run")
