"""Turn a configuration into results. Hydra, OmegaConf and W&B are imported in this package only."""
