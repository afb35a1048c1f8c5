"""Scripts of customer service and of a teacher, from tables or a language model.

It must not know how they are spoken.
"""
