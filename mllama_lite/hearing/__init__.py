"""Hearing: sound to numbers, Whisper's encoder, and a language model that hears (chapter 18)."""
