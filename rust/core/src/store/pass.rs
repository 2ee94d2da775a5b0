//! A batch's way over the stripes: a pipeline that hides the memory behind the keys.
//!
//! Each key is taken up three times, some keys apart: its line of the index is asked for; the line
//! is looked at and the row asked for; the row is visited. Keys come stripe after stripe, and a
//! stripe is locked from its first key's first step to its last key's visit. Nobody waits for a
//! stripe while it holds another: where one is taken, what is on its way is finished first.

use std::collections::VecDeque;
use std::ops::Range;

use crate::error::Result;
use crate::index::LocationRing;
use crate::table::{Guard, Item, Part, Plan, State, Stripe, Table};

/// Keys between two steps of the pipeline: enough to keep all the requests to memory in flight that
/// a core can have.
const AHEAD: usize = 32;
/// Keys that take one step together.
const STRIDE: usize = 16;

/// Why a key's stripe is found among the locked ones.
const LOCKED: &str = "a stripe is locked from its first key's request to its last key's visit";

const _: () = assert!(2 * AHEAD + STRIDE <= LocationRing::LEN);

/// What is done with the keys of a pass.
pub(super) trait Visits {
    /// These keys will be visited: asks for the caller's memory that this will need. Keys come in
    /// the order of the stripes, at random places of the caller's arrays.
    fn ask(&mut self, items: &[Item]);

    /// These keys, of which the first is number `first` of the pass, are next.
    fn visit(&mut self, part: &mut Part, items: &[Item], found: &LocationRing, first: usize);

    /// These keys belong to a stripe that holds no row of the table.
    fn absent(&mut self, items: &[Item]);

    /// All keys of a stripe were visited; it is still locked.
    fn leave(&mut self, state: &mut State) -> Result<()>;
}

/// One table's keys on their way.
pub(super) struct Pass<'a> {
    stripes: &'a [Stripe],
    table: &'a Table,
    plan: &'a Plan,
    /// Locked stripes in their order: visits are in the first, requests in the last.
    locked: VecDeque<(usize, Guard<'a>)>,
    /// Of the keys between probe and visit.
    found: LocationRing,
    /// False: a stripe that another call holds is not waited for.
    is_patient: bool,
}

/// How far one of the steps has come.
#[derive(Default)]
struct Cursor {
    stripe: usize,
    key: usize,
}

impl Cursor {
    /// Goes on to `end`, or to the end of a stripe: the stripe, and the keys passed.
    fn advance(&mut self, plan: &Plan, end: usize) -> Option<(usize, Range<usize>)> {
        if self.key >= end {
            return None;
        }
        while plan.range(self.stripe).end <= self.key {
            self.stripe += 1;
        }
        let start = self.key;
        self.key = end.min(plan.range(self.stripe).end);
        Some((self.stripe, start..self.key))
    }
}

impl<'a> Pass<'a> {
    pub(super) fn new(stripes: &'a [Stripe], table: &'a Table, plan: &'a Plan) -> Self {
        let (locked, found) = <(VecDeque<_>, LocationRing)>::default();
        Self { stripes, table, plan, locked, found, is_patient: true }
    }

    /// A pass that stops at a stripe that another call holds.
    pub(super) fn impatient(self) -> Self {
        Self { is_patient: false, ..self }
    }

    /// False if it stopped, having visited the keys before.
    pub(super) fn run(mut self, visits: &mut impl Visits) -> Result<bool> {
        let keys = self.plan.items.len();
        let (mut asked, mut probed, mut visited) = <(Cursor, Cursor, Cursor)>::default();
        while visited.key < keys {
            let is_free = self.ask(&mut asked, keys);
            if !is_free && self.locked.is_empty() {
                return Ok(false);
            }
            // At the end, and before a stripe that is taken, there is nothing to hide behind.
            let ahead = if is_free && asked.key < keys { AHEAD } else { 0 };
            let first = probed.key;
            self.probe(&mut probed, asked.key.saturating_sub(ahead));
            visits.ask(&self.plan.items[first..probed.key]);
            self.visit(&mut visited, probed.key.saturating_sub(ahead), visits)?;
        }
        Ok(true)
    }

    /// Asks for the lines of the next keys. False before a stripe that another call holds.
    fn ask(&mut self, asked: &mut Cursor, keys: usize) -> bool {
        let end = keys.min(asked.key + STRIDE);
        loop {
            let before = asked.key;
            let Some((s, range)) = asked.advance(self.plan, end) else { return true };
            if self.locked.back().is_none_or(|last| last.0 != s) {
                let Some(guard) = self.lock(s) else {
                    asked.key = before;
                    return false;
                };
                self.locked.push_back((s, guard));
            }
            let part = self.locked.back().and_then(|last| last.1.parts.get(&self.table.id));
            if let Some(part) = part {
                part.ask(&self.plan.items[range]);
            }
        }
    }

    fn lock(&self, s: usize) -> Option<Guard<'a>> {
        match self.is_patient && self.locked.is_empty() {
            true => Some(self.stripes[s].lock()),
            false => self.stripes[s].try_lock(),
        }
    }

    fn probe(&mut self, probed: &mut Cursor, end: usize) {
        while let Some((s, range)) = probed.advance(self.plan, end) {
            let (items, first) = (&self.plan.items[range.clone()], range.start);
            let (_, state) = self.locked.iter().find(|locked| locked.0 == s).expect(LOCKED);
            match state.parts.get(&self.table.id) {
                Some(part) => part.probe_ahead(items, self.table.dim, &mut self.found, first),
                None => range.for_each(|n| self.found.set(n, None)),
            }
        }
    }

    fn visit(&mut self, visited: &mut Cursor, end: usize, visits: &mut impl Visits) -> Result<()> {
        while let Some((s, range)) = visited.advance(self.plan, end) {
            let items: &[Item] = &self.plan.items[range.clone()];
            let (_, state) = self.locked.front_mut().expect(LOCKED);
            match state.parts.get_mut(&self.table.id) {
                Some(part) => {
                    visits.visit(part, items, &self.found, range.start);
                }
                None => visits.absent(items),
            }
            if range.end == self.plan.range(s).end {
                visits.leave(state)?;
                self.locked.pop_front();
            }
        }
        Ok(())
    }
}
