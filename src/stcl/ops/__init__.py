"""Pure functions on tensors: no state, no files, no configuration."""
