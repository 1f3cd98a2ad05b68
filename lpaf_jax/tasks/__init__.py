"""What a task asks of a model."""
