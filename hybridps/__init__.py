"""hybridps: a parameter server for huge sparse embedding tables.

Rows are created on first sight of a 64-bit key, trained in place by a sparse optimizer, and live in
DRAM while hot, on NVMe while warm.

    import hybridps as hps

    ps = hps.connect("hps://127.0.0.1:7440")        # or "local:./store", in this process
    item = ps.create_table(hps.TableSpec("item", dim=64, optimizer=hps.Adagrad(0.05)))
    rows = item.lookup_or_insert([1, 2, 3])
"""

try:
    from hybridps._core import __version__
except ImportError as error:
    from hybridps.unbuilt import explain

    explain(error)
from hybridps import aio
from hybridps.admission import MinCount, Probability
from hybridps.checkpoints import (
    Checkpoint,
    checkpoints,
    prune_checkpoints,
    verify_checkpoint,
)
from hybridps.client.blocking import ParameterServer, Table
from hybridps.client.connect import connect
from hybridps.errors import (
    AuthError,
    BadInputError,
    ConfigError,
    CorruptionError,
    CursorError,
    DeadlineError,
    HybridPSError,
    OverloadedError,
    ReadOnlyError,
    StaleError,
    StoreFullError,
    TableMismatchError,
    TableNotFoundError,
    UnavailableError,
)
from hybridps.expiry import After, AfterSteps, BelowNorm
from hybridps.keys import key_of, keys_of
from hybridps.optimizers import (
    FTRL,
    SGD,
    AdaBelief,
    Adagrad,
    Adam,
    AdamW,
    AMSGrad,
    GroupAdam,
    Lamb,
    Momentum,
    RAdam,
    RMSprop,
    RowWiseAdagrad,
    SparseGroupFtrl,
)
from hybridps.planning import Plan, plan
from hybridps.types import (
    Constant,
    Normal,
    TableSpec,
    TruncatedNormal,
    Uniform,
    Zeros,
)
from hybridps.verbs.inspect import Inspected
from hybridps.verbs.pull import Change
from hybridps.verbs.scrub import Damaged, Scrubbed
from hybridps.verbs.statistics import Statistics

__all__ = [
    "FTRL",
    "SGD",
    "AMSGrad",
    "AdaBelief",
    "Adagrad",
    "Adam",
    "AdamW",
    "After",
    "AfterSteps",
    "AuthError",
    "BadInputError",
    "BelowNorm",
    "Change",
    "Checkpoint",
    "ConfigError",
    "Constant",
    "CorruptionError",
    "CursorError",
    "Damaged",
    "DeadlineError",
    "GroupAdam",
    "HybridPSError",
    "Inspected",
    "Lamb",
    "MinCount",
    "Momentum",
    "Normal",
    "OverloadedError",
    "ParameterServer",
    "Plan",
    "Probability",
    "RAdam",
    "RMSprop",
    "ReadOnlyError",
    "RowWiseAdagrad",
    "Scrubbed",
    "SparseGroupFtrl",
    "StaleError",
    "Statistics",
    "StoreFullError",
    "Table",
    "TableMismatchError",
    "TableNotFoundError",
    "TableSpec",
    "TruncatedNormal",
    "UnavailableError",
    "Uniform",
    "Zeros",
    "__version__",
    "aio",
    "checkpoints",
    "connect",
    "key_of",
    "keys_of",
    "plan",
    "prune_checkpoints",
    "verify_checkpoint",
]
