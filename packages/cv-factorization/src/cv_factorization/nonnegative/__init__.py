"""Non-negative matrix factorisation and its kin, for arrays, sparse matrices and tensors."""
