"""Study 4: knowledge transfer from masks, with its controls (Li et al. 2025)."""
