"""The wire on asyncio: sockets around the compiled connection, the order of calls, their bounds.

`schemas` reads and writes the messages of cold verbs; `sequencer` keeps the order of one
connection's calls; `budget` bounds bytes in flight; `transport` drives one connection; `listener`
accepts them. Protocol: `docs/protocol.md`.
"""
