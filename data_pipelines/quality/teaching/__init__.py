"""What scripts and dialogues teach a model, in numbers: the measures of `ppx-data audit`."""
