"""The `gklbench` command. Only this folder may import from all others; each command imports what it needs itself."""
