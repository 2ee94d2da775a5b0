@0xb6c1f7d2a94e3058;
# The one contract between client and server. It grows only by addition.
#
# Every verb is the camelCase of its name in the Python API. Arrays travel as Data, little-endian:
# keys uint64, rows and gradients float32, counts uint32, found one byte a key (0 or 1).
# A Data of keys holds 8 * n bytes, of rows 4 * n * dim bytes; other lengths are refused.
# Errors are Cap'n Proto exceptions whose reason is "<class>: <text>", <class> one of the
# exception names of the Python API (BadInputError, TableNotFoundError, ...).

struct Optimizer {
  learningRate @0 :Float32;
  union {
    sgd @1 :Void;
    adagrad @2 :AdagradOptions;
    rowWiseAdagrad @3 :AdagradOptions;
    adam @4 :AdamOptions;
    momentum @5 :MomentumOptions;
    adamW @6 :AdamOptions;
    amsGrad @7 :AdamOptions;
    rmsProp @8 :RmsPropOptions;
    ftrl @9 :FtrlOptions;
    adaBelief @10 :AdamOptions;
    rAdam @11 :AdamOptions;
    lamb @12 :AdamOptions;
    groupAdam @13 :GroupAdamOptions;
    sparseGroupFtrl @14 :GroupFtrlOptions;
  }
  # Of gradients, before the rule sees them; 0: not at all.
  weightDecay @15 :Float32;
  clipValue @16 :Float32;
  clipNorm @17 :Float32;
}

struct AdagradOptions { initialAccumulator @0 :Float32; eps @1 :Float32; }
struct AdamOptions { beta1 @0 :Float64; beta2 @1 :Float64; eps @2 :Float32; }

struct MomentumOptions { momentum @0 :Float32; nesterov @1 :Bool; }
struct RmsPropOptions { alpha @0 :Float64; eps @1 :Float32; }
struct FtrlOptions { initialAccumulator @0 :Float32; l1 @1 :Float32; l2 @2 :Float32; }

struct GroupFtrlOptions {
  initialAccumulator @0 :Float32;
  l1 @1 :Float32;
  l2 @2 :Float32;
  l21 @3 :Float32;
}

struct GroupAdamOptions {
  beta1 @0 :Float64;
  beta2 @1 :Float64;
  eps @2 :Float32;
  l1 @3 :Float32;
  l2 @4 :Float32;
  l21 @5 :Float32;
}

struct Initializer {
  union {
    zeros @0 :Void;
    constant @1 :Float32;
    uniform @2 :UniformOptions;
    normal @3 :NormalOptions;
    truncatedNormal @4 :NormalOptions;
  }
}

struct UniformOptions { low @0 :Float32; high @1 :Float32; }
struct NormalOptions { mean @0 :Float32; std @1 :Float32; }

# Which keys get a row. Other than all only to a server whose features hold "admission".
struct Admission {
  union {
    all @0 :Void;
    minCount @1 :MinCountOptions;
    probability @2 :ProbabilityOptions;
  }
}

# capacity: keys that are not admitted and are remembered.
struct MinCountOptions { n @0 :UInt32; capacity @1 :UInt64; }
struct ProbabilityOptions { p @0 :Float64; capacity @1 :UInt64; }

struct TableSpec {
  name @0 :Text;
  dim @1 :UInt32;
  optimizer @2 :Optimizer;
  initializer @3 :Initializer;
  seed @4 :UInt64;
  dtype @5 :Text = "float32";
  dram @6 :UInt64;               # bytes; 0: draws on the store's common budget
  nvme @7 :UInt64;               # bytes; 0: draws on the store's common budget
  expiry @8 :Expiry;             # where the server's features hold "expiry"
  admission @9 :Admission;       # where the server's features hold "admission"
}

# When rows go by themselves.
struct Expiry {
  union {
    none @0 :Void;
    after @1 :AfterOptions;
    afterSteps @2 :AfterStepsOptions;
    belowNorm @3 :BelowNormOptions;
  }
}

struct AfterOptions { seconds @0 :UInt64; }          # since the key was last seen in training
struct AfterStepsOptions { steps @0 :UInt64; }       # since the key was last pushed
struct BelowNormOptions { norm @0 :Float32; }        # Euclidean length of the value

struct TableInfo {
  id @0 :UInt32;                 # names the table in every verb; never used again after a drop
  spec @1 :TableSpec;            # as stored: live settings included
  warnings @2 :List(Text);       # live settings in which the asked spec differs from the stored one
}

struct Counter { name @0 :Text; value @1 :UInt64; }

struct KeyBatch {
  table @0 :UInt32;
  keys @1 :Data;
}

struct CountedKeys {
  table @0 :UInt32;
  keys @1 :Data;
  counts @2 :Data;               # empty: one per occurrence
}

struct GradientBatch {
  table @0 :UInt32;
  keys @1 :Data;
  gradients @2 :Data;
}

struct BagBatch {
  table @0 :UInt32;
  keys @1 :Data;                 # of all bags, one bag after the other; keys may repeat
  bags @2 :Data;                 # uint32 a bag: how many of the keys are its
  weights @3 :Data;              # float32 a key; empty: 1 each
}

# How numbers of rows and gradients travel. Only to a server whose features hold "wireDtype".
enum Dtype { float32 @0; bfloat16 @1; float16 @2; }

# What a scatter does to the numbers of a value. (Setting them is assign.)
enum Scatter { add @0; sub @1; mul @2; div @3; min @4; max @5; }

struct RowBatch {
  rows @0 :Data;
  found @1 :Data;                # empty unless asked for
}

# Every mutating verb is a push: numbered by its client, in the order sent, and applied once.
struct Push {
  number @0 :UInt64;             # grows from push to push within the session of hello
  hasStep @1 :Bool;
  step @2 :Int64;
  # Of a push that does not fit one message: bytes of keys and values in all its parts. The first
  # part holds none and is answered when there is room for all; then come the others. Nothing is
  # applied before the last, and then all as one; a push whose parts do not all come never was.
  total @3 :UInt64;              # 0: this message is the whole push
}

struct ServerInfo {
  version @0 :Text;
  shard @1 :UInt32;
  shards @2 :UInt32;
  lastPush @3 :UInt64;           # highest push number of this session that was applied; 0: none
  frameLimit @4 :UInt64;         # bytes, the largest message this server reads
  keysLimit @5 :UInt64;          # keys, the most one call may name
  # What this server understands: verbs in snake case, and fields that older servers would not see,
  # by name. None: it is older than this list, and knows the verbs up to `flush`.
  features @6 :List(Text);
  lastRound @7 :UInt64;          # the last one that workers pushed together; 0: none
}

interface Gate {
  login @0 (token :Text) -> (session :Session);
}

interface Session {
  # The hot verbs come first; the server answers them without leaving Rust.
  # `dtype` is that of the rows of the reply, or of the gradients.
  lookup @0 (tables :List(KeyBatch), wantFound :Bool, dtype :Dtype) -> (tables :List(RowBatch));
  lookupOrInsert @1 (tables :List(CountedKeys), dtype :Dtype) -> (tables :List(RowBatch));
  applyGradients @2 (push :Push, tables :List(GradientBatch), dtype :Dtype) -> (duplicate :Bool);

  # workers above 0: the gradients of so many clients, this one of `rank`, are summed in the order
  # of ranks and applied once; their push numbers are those of the rounds. Only to a server whose
  # features hold "sync_workers".
  hello @3 (session :UInt64, clientId :Text, workers :UInt32, rank :UInt32)
      -> (server :ServerInfo);
  prefetch @4 (tables :List(KeyBatch)) -> ();
  assign @5 (push :Push, table :UInt32, keys :Data, rows :Data) -> ();
  remove @6 (push :Push, table :UInt32, keys :Data) -> (removed :UInt64);
  createTable @7 (spec :TableSpec) -> (table :TableInfo);
  table @8 (name :Text) -> (table :TableInfo);
  tables @9 () -> (names :List(Text));
  dropTable @10 (name :Text) -> ();
  setLearningRate @11 (table :UInt32, learningRate :Float32) -> ();
  alter @12 (table :UInt32, change :TableChange) -> ();
  size @13 (table :UInt32) -> (keys :UInt64);
  # Keys of buckets [bucket, next), where next is chosen by the server; next = 4096 ends the walk.
  keys @14 (table :UInt32, bucket :UInt32) -> (keys :Data, next :UInt32);
  tableStats @15 (table :UInt32) -> (counters :List(Counter));
  stats @16 () -> (counters :List(Counter));
  flush @17 () -> ();
  # One row a bag: the sum of its keys' rows, each times its weight, in float32 in order of the
  # bag. keyBytes 4: keys are uint32, for tables whose keys fit; else 8.
  lookupPooled @18 (tables :List(BagBatch), dtype :Dtype, keyBytes :UInt8 = 8)
      -> (tables :List(RowBatch));
  # Rows as they are stored, one a key in the order of the keys; no visit.
  inspect @19 (table :UInt32, keys :Data) -> (rows :List(InspectedRow));
  # Reads and checks what is on the device from `start` on (0: the beginning) until about `bytes`
  # were read; mends what can be. The next step begins at `next`, unless `isEnd`.
  scrub @20 (start :UInt64, bytes :UInt64) -> (next :UInt64, isEnd :Bool, records :UInt64,
    bytes :UInt64, totalBytes :UInt64, damaged :List(Damaged));
  # Where the server's store is now: all changes up to `sequence` are made, later ones are above.
  # `store`: 32 hexadecimal digits, another for every store.
  cursor @21 () -> (store :Text, sequence :UInt64, tables :List(TableEntry));
  # What changed in cells [start, end) of a table, a page of about `bytes`: of rows newer than
  # `since` (all, unless hasSince) key and value, and keys that were removed since. The page covers
  # the cells below `next`. A cell is what the first 36 bits of a key's hash say; 2^36 in all.
  changes @22 (table :UInt32, start :UInt64, end :UInt64, hasSince :Bool, since :UInt64,
    bytes :UInt64) -> (removed :Data, keys :Data, rows :Data, next :UInt64);
  # Arithmetic on values: of a key that is repeated, row after row. Absent keys begin at their
  # initial row; slots stay as they are.
  scatter @23 (push :Push, table :UInt32, keys :Data, rows :Data, operation :Scatter) -> ();
  # Of each key uint32 of training reads, uint32 Unix seconds when it was last seen, and a byte for
  # its tier: 0 it has no row, 1 dram, 2 nvme, 3 cold. No visit.
  statistics @24 (table :UInt32, keys :Data) -> (frequency :Data, lastSeen :Data, tier :Data);
  # How far a replica is behind the one that it follows; 0 on any other server, 2^64 - 1 where it
  # never had all.
  staleness @25 () -> (milliseconds :UInt64);
  # Rows whole: of each key its value, its slots if they come along, then training reads and Unix
  # seconds of the last as the bits of two uint32. Without slots, present rows keep theirs.
  importRows @26 (push :Push, table :UInt32, keys :Data, rows :Data) -> ();
  # A page of such rows in cells [start, end), of about `bytes`; it covers the cells below `next`.
  exportRows @27 (table :UInt32, start :UInt64, end :UInt64, wantSlots :Bool, bytes :UInt64)
      -> (keys :Data, rows :Data, next :UInt64);
  # Removes what has expired of buckets [bucket, next), where next is chosen by the server; 4096
  # ends the walk. As of `now` (Unix seconds), or by the server's clock unless hasNow.
  expire @28 (table :UInt32, bucket :UInt32, hasNow :Bool, now :UInt64)
      -> (removed :UInt64, next :UInt32);
  # Long work of a server, which is asked after: whoever asks first for a job of that name begins
  # it. `request` and `answer` are JSON: docs/protocol.md. An error is that of the job.
  checkpoint @29 (job :Text, request :Text) -> (answer :Text);
  restore @30 (job :Text, request :Text) -> (answer :Text);
}

struct InspectedRow {
  key @0 :UInt64;
  tier @1 :Text;                 # "dram", "nvme" or "cold"; empty: the key has no row
  hasPlace @2 :Bool;
  place @3 :UInt64;              # byte offset of its record in the file of its tier
  dirty @4 :Bool;                # newer in DRAM than that record
  sequence @5 :UInt64;           # of the last call that changed it
  frequency @6 :UInt32;
  lastSeen @7 :UInt32;           # Unix seconds when it was last seen in training
  norm @8 :Float64;              # Euclidean length of the value
  error @9 :Text;                # why it cannot be read; empty: it can
}

struct TableEntry {
  name @0 :Text;
  id @1 :UInt32;
  dim @2 :UInt32;
}

struct Damaged {
  hasRow @0 :Bool;
  table @1 :Text;
  key @2 :UInt64;
  offset @3 :UInt64;             # bytes, in the log
  fate @4 :Text;                 # "lost", "rewritten", "freed" or "left"
}

struct TableChange {
  learningRate :union { keep @0 :Void; value @1 :Float32; }
  dram :union { keep @2 :Void; value @3 :UInt64; }     # bytes; 0: no cap of its own
  nvme :union { keep @4 :Void; value @5 :UInt64; }
  expiry :union { keep @6 :Void; value @7 :Expiry; }
  admission :union { keep @8 :Void; value @9 :Admission; }
}
