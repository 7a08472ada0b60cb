"""Who may do what and how much: tokens, quotas, requests a minute, and the record of what was changed."""
