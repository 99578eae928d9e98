"""Check and repair a bank."""
