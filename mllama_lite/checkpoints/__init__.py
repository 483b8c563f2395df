"""Models in files: configurations, names, tensors, loading and saving (chapters 9 and 10)."""
