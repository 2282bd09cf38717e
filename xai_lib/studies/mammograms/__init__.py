"""Study 2: boxes from maps of whole mammograms, and inserted lesions (Sam-Millan et al. 2023)."""
