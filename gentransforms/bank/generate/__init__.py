"""Fill a bank."""
