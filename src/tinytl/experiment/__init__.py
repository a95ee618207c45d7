"""From a configuration to results. Only here are Hydra, OmegaConf and W&B imported."""
