"""Prompts as conditions: encoded, and shared by all images of a generator."""
