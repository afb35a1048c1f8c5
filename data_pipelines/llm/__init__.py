"""Language models behind OpenAI-compatible endpoints, and what they write beside dialogues: role prompts."""
