"""LoRA and fine-tuning: matrices beside a model that knows nothing of them (chapters 12 to 14)."""
