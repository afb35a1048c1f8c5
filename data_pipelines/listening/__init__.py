"""What is said, when and by whom: recognition, alignment, speakers. It must not judge what it hears, or know shards."""
