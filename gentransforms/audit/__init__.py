"""Audit generated images against their sources: measure, show, act."""
