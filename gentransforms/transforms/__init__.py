"""Transforms that replace images by generated ones."""
