"""Which diffusers pipelines a generator can call, and through which arguments."""
