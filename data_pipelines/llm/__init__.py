"""The client of a language model: settings, retries, answers, cache. It must not know what is asked, or why."""
