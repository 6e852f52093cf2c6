"""Studies of the data and of trained models, one per notebook."""
