//! The hot verbs between the buffers of a socket and the engine. No Python, and no socket is made
//! or read here: whoever owns one hands bytes in and takes frames out.
//!
//! Floor plan, from the bytes up: `memory` (frames as words, shared without a copy) > `receiver`
//! (bytes to frames) > `reads`, `pushes` (what a verb does with its arrays) > `pieces`, `stream` (a
//! large reply, cut, and sent while it is gathered) by an `outlet` > `call` (one hot call, with
//! what all calls of a connection share: `shared`) > `connection`, `client` (the two sides). Beside
//! them `local` and `texts`: what a caller in this process asks, by its arrays or in plain fields.

mod allocator;
mod call;
mod client;
mod connection;
mod dtype;
mod failure;
pub mod jobs;
pub mod local;
mod memory;
mod outlet;
mod pieces;
mod pushes;
mod reads;
mod receiver;
mod shared;
mod stream;
pub mod texts;
mod together;

pub use allocator::tune_allocator;
pub use call::Call;
pub use client::{Asked, Client};
pub use connection::{Connection, Event, Noted};
pub use failure::{class_of, Failure, Misuse};
pub use memory::{as_numbers, View, Words};
pub use outlet::{Outlet, Socket};
pub use together::apply_together;
