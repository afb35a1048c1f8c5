"""What a data set costs to make, reckoned from measured rates."""
