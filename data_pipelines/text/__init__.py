"""Words as text: spoken forms, numerals, claims, case. It must not know audio, dialogues or language models."""
