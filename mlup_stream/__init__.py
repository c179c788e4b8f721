"""Load machine-learning models with as little memory as their format allows."""
