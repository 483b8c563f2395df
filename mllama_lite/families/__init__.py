"""Other roads, built from the same parts: Llama 4's text model (chapter 16)."""
