"""Backbones, one file a family; ``base`` is their contract."""
