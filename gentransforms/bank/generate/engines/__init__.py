"""Where the units of a bank are generated."""
