"""Any pipeline of diffusers as a generator."""
