"""Scripts become sound: engines, the timing of turns, two-channel dialogues."""
