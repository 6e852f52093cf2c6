"""Classical machine learning: descriptors of clips, and classifiers on them."""
