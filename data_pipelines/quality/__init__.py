"""Is a dialogue good? Gates, checks and reports. It must not know how speech is made or recordings are imported."""
