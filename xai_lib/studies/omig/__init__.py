"""Study 6: what an ensemble reads in images of the CDMAM phantom (Amanova et al. 2022)."""
