//! Cap'n Proto RPC (two-party, level 1) as a state machine: bytes in, events and bytes out.
