"""What is on disk in a bank."""
