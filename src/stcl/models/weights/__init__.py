"""Weights of any origin: our own, starting weights, published checkpoints."""
