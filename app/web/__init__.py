"""The pages: rendered on the server, usable without JavaScript, with all state in the address."""
