"""Small real data sets for the first examples."""
