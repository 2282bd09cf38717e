"""Study 3: class activation maps of ultrasound networks, and the pointing game (Byra et al. 2022)."""
