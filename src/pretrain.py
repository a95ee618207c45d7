"""Make starting weights: train a network on labelled images, or adapt a BatchNorm network to GroupNorm.

python src/pretrain.py                                      # on images drawn from formulas
python src/pretrain.py data=folder data.root=IMAGENET
python src/pretrain.py teacher=mobilenetv2_100.ra_in1k model=mobilenetv2_100 data=unlabelled data.root=IMAGES
"""

import signal

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports without a traceback
    from tinytl.experiment.terminal.start import start

    start("pretrain")
