"""Who may do what, and over which connection: tokens of the server, TLS of both sides."""
