//! Cap'n Proto RPC (`rpc.capnp`, two-party, level 1) as a state machine: frames in, events and
//! frames out. No I/O, no clock, no Python, no thread; the standard library only.
//!
//! Floor plan, from the bytes up: `frame` (how long is the next message) > `message` (walk a
//! received one, every offset checked) and `compose` (write one) > `rpc` (the protocol's messages)
//! and `verbs`, `ask` (the arrays of our schema), `parts` (a push that comes in several messages),
//! `stream` (a reply whose end is decided last) > `server`, `client` (the two sides).
//!
//! Frames are slices of 64-bit words, because every object in them starts at a word: keys come out
//! as `&[u64]` without a cast. The wire is little-endian and so is every machine we build for.

#[cfg(target_endian = "big")]
compile_error!("frames are read in place as little-endian words; this machine is big-endian");

mod ask;
mod client;
mod compose;
mod frame;
mod message;
mod parts;
mod rpc;
mod schema;
mod server;
mod stream;
mod verbs;

pub use ask::{Ask, Sizes};
pub use client::{Answer, ClientConnection, Outcome, Reason};
pub use frame::{FrameSize, SEGMENTS_MAX};
pub use message::{Bytes, Malformed, Message, Struct, StructList};
pub use parts::{is_announcement, Collected, Columns, Parts, Pushed};
pub use rpc::{exception_return, ExceptionKind};
pub use schema::{
    is_hot, is_read, Dtype, APPLY_GRADIENTS, ASSIGN, IMPORT_ROWS, INTERFACE_GATE,
    INTERFACE_SESSION, LOOKUP, LOOKUP_OR_INSERT, LOOKUP_POOLED, PREFETCH, REMOVE, SCATTER, VERBS,
};
pub use server::{Event, ServerConnection, QUESTIONS_MAX};
pub use stream::StreamedReply;
pub use verbs::{
    decode_bags, decode_batches, decode_dtype, decode_operation, decode_push, decode_rows,
    decode_want_found, duplicate_reply, empty_reply, removed_reply, rows_reply, BagBatch, Batch,
    BlobAt, Layout, PushHeader, Refusal, RowsAt, DATA_MAX,
};
