"""How much a table will take, before it exists. Pure: asks the engine's layouts, opens no store."""

from dataclasses import dataclass

from hybridps import _core
from hybridps.errors import BadInputError
from hybridps.sizes import parse_size
from hybridps.types import TableSpec


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes that a table takes of a store that holds nothing else, all in.

    `row_dram_bytes`, `row_nvme_bytes`: of one row in each tier, with its header; the index comes
    on top. `index_bytes`: of all rows, in DRAM whatever tier they are in. `candidates_bytes`: the
    most that counts of keys which are not admitted take in DRAM. `dram_smallest`: the
    least `dram` with which all rows can be kept, nearly all on NVMe; `dram_whole`: with which none
    need be there. `nvme`: what to ask for. `rows_dram`: rows that fit the given `dram`, or None.
    """

    rows: int
    row_dram_bytes: int
    row_nvme_bytes: int
    index_bytes: int
    candidates_bytes: int
    dram_smallest: int
    dram_whole: int
    nvme: int
    rows_dram: int | None


def plan(spec: TableSpec, rows: int, dram: int | str | None = None) -> Plan:
    """What `rows` rows of a table will take.

    Args:   spec: as for `create_table`. rows: how many there will be.
            dram: a budget such as "8GiB", to learn how many rows it keeps in memory.
    Raises: BadInputError for a spec no table can have, for rows below 0 or more than any store can
            hold, and for a `dram` below the smallest.
    """
    if not isinstance(spec, TableSpec):
        raise BadInputError(f"spec is {spec!r}; give an hps.TableSpec")
    if isinstance(rows, bool) or not isinstance(rows, int) or not 0 <= rows < 1 << 63:
        raise BadInputError(f"rows is {rows!r}; give a whole number from 0 on")
    needs = dict(_core.needs(spec.to_json(), rows))
    kept = None
    if dram is not None:
        budget = parse_size(dram, "dram")
        if budget < needs["dram_smallest"]:
            raise BadInputError(
                f"dram is {budget} bytes, and {rows} rows need {needs['dram_smallest']} for their"
                " index and buffers alone; give more, or fewer rows"
            )
        # Between the two it grows by a row for each row's bytes, with the tenth that calls have.
        lacking = max(0, needs["dram_whole"] - budget) * 9 // 10
        kept = max(0, rows - lacking // needs["row_dram_bytes"])
    return Plan(rows=rows, rows_dram=kept, **needs)
