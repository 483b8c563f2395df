"""A language model from nothing: vocabulary, corpus, training (chapter 16)."""
