"""The `gklbench` command. The one room that may reach across all others, inside the command that needs it."""
