"""Which rows are left out before they cost anything: scores, thresholds, near-duplicates."""
