"""Domain-adaptive video segmentation by spatio-temporal consistency learning."""

__version__ = "0.1.0"
