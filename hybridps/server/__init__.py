"""The server process: settings to sockets, verbs to the engine, counters to people."""
