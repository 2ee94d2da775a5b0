//! The KV-Variable: tables of rows cut into stripes, each behind one lock, each with its own share
//! of the DRAM budget. Rows that do not fit leave for the log; one index entry finds them there.
//!
//! Lock order: a stripe's lock, then the log's. Nothing here reads the device; a row that leaves
//! waits for it only when all segment buffers are on their way there, or the log is full.

mod admit;
mod heat;
mod image;
mod kept;
mod newer;
mod part;
mod plan;
mod policy;
mod pool;
mod reclaim;
mod row;
mod shape;
mod share;
mod sketch;
mod steps;
mod stripe;
mod turn;
mod write_back;

pub(crate) use kept::{Since, Taken};
pub(crate) use newer::Look;
pub(crate) use part::{Found, Part, Visitor};
pub(crate) use plan::{stripe_of, Item, Plan};
pub(crate) use pool::row_bytes;
pub(crate) use row::{Header, RowMut};
pub(crate) use shape::{Counters, Table};
pub(crate) use steps::{Knot, Steps};
pub(crate) use stripe::{bury, State, Tier};
pub(crate) use turn::{Guard, Stripe, Tickets};
pub(crate) use write_back::Due;
