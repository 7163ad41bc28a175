"""Load on a server, adapterhub's or any that speaks OpenAI's HTTP, and what the server made of it."""
