"""The client: verbs are data (`verbs`), planned per server (`router`), moved by a transport.

`verbs` validates a call whole and yields the calls for each server; `blocking` and `aio` drive it;
`local`, `remote` and `streams` move the calls. The three therefore differ only in who moves bytes.
"""
