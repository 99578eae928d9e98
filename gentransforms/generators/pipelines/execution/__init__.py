"""How the networks of a pipeline run: caches between steps, torch.compile, offloading."""
