"""What a data set costs to make, from measured rates. Nothing else may need it."""
