"""The small model that ships: its pictures and questions, training, measuring (chapter 11)."""
