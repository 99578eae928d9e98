"""Transforms that replace images with generated ones."""
