"""The demonstration: a click model trained through a real server, beside plain torch.

Part one trains on the census data that ships with the project, part two on a planted click log
of millions of ids. Rooms: `datasets` and `planted` make the data, `models` the dense part,
`reference` plain torch tables, `training` the loop both sides share, `server` the subprocess,
`sizing` the DRAM budget, `accuracy` and `scale` the two parts, `report` the closing table.
Only the public API of hybridps is used here. torch and tqdm are imported by the parts alone, so
that importing this package costs nothing.
"""
