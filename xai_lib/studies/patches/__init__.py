"""Study 1: seven methods on mammogram patches, healthy twins and shifted lesions (Sam-Millan et al. 2023)."""
