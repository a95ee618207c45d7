"""Networks, and what is done to them before they train: norms, lite residuals, checkpoints, 8 bits."""
