"""The job from a checkpoint to a smaller one, and its folder."""
