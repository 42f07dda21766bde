"""Training on both domains: settings, configuration, loop, checkpoints, run folder, evaluation."""
