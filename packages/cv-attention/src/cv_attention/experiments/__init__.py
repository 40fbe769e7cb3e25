"""One declaration per paper: the experiments of cv-attention."""
