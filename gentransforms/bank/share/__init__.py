"""Export a bank, and open what was exported."""
