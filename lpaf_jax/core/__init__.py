"""What knows of no model and no method."""
