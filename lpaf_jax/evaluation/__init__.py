"""What finished models are worth: predictions, perplexity, time, size."""
