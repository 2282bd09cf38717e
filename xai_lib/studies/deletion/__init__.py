"""Study 5: inpainting and the smallest deletion region, with the healthy twin as oracle (Major et al. 2020)."""
