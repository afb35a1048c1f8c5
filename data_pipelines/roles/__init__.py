"""Role prompts for recorded calls. It must not know where a call came from."""
