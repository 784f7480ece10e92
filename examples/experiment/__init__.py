"""The original experiment: its four systems, their losses and predictors, which use st_asym from outside."""
