"""The pages: rendered on the server, readable without JavaScript, the address is the state."""
