"""Evidence for or against an entry besides its own evaluation: external attacks, reports, transfers, comparisons."""
