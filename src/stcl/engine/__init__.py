"""What is done: a run folder is trained, then evaluated. One file a verb."""
