"""Models in files: configurations, names, tensors, loading and saving (chapters 9, 11 and 15)."""
