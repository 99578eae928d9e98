"""Banks: directories of pre-generated variants, for generators too slow to run in the training loop."""
