"""What the notebooks carry out: one package per study (settings, training, tables, summary, claims, real data)."""
