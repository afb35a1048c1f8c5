"""The commands: arguments, messages, exit codes. No logic lives here."""
