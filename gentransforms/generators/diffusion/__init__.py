"""Diffusion models on diffusers' components: Stable Diffusion image variation and ControlNet."""
