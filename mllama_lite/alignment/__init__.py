"""A pretrained encoder beside a language model: captions, features, training (chapter 20)."""
