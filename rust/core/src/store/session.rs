//! Who pushes: sessions, their last push, and the steps of their clients. Exactly once is decided
//! here, under the sequencer's lock, and journaled with the rows.
//!
//! Idle times are told by a clock of their own, which runs while the store is open and goes on from
//! where the last snapshot left it: no correction of the system's clock makes a session old.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::error::{Error, Result};
use crate::journal::SessionRecord;
use crate::types::{Push, TableId, WORKERS_SESSION};

/// Idle sessions are forgotten after this.
const IDLE_SECONDS: u64 = 3600;
/// Removals of a session whose outcome is remembered: as many calls as a connection may have
/// unanswered, all of which may come again.
const REMOVALS: usize = 256;

#[derive(Default)]
pub(super) struct Sessions {
    /// What the clock of sessions said when the store was opened.
    opened_at: u64,
    sessions: HashMap<u64, Session>,
    clients: HashMap<String, Client>,
    /// The keys of `sessions`, for those who must not wait for the sequencer.
    known: Known,
}

/// Which sessions are remembered. Its lock is held for no longer than a look takes.
pub(super) type Known = Arc<RwLock<HashSet<u64>>>;

#[derive(Default)]
struct Session {
    client_id: String,
    last_push: u64,
    last_used: u64,
    /// Highest step per table in this session.
    steps: HashMap<TableId, i64>,
    removals: VecDeque<Removal>,
}

/// One of the last removals of a session.
struct Removal {
    number: u64,
    /// That it found.
    rows: u64,
    /// By the removal itself, not by its replay: that finds fewer if some had left before.
    is_told: bool,
}

#[derive(Default)]
struct Client {
    session: u64,
    /// The one before, under whose name a snapshot keeps the steps below.
    previous: Option<u64>,
    /// Highest step per table of the sessions before this one.
    steps: HashMap<TableId, i64>,
}

impl Session {
    fn record(&self, session: u64) -> SessionRecord {
        SessionRecord {
            session,
            client_id: self.client_id.clone(),
            number: self.last_push,
            last_used: self.last_used,
            steps: self.steps.iter().map(|(&table, &step)| (table, step)).collect(),
            removals: self.removal_records(),
        }
    }

    fn removal_records(&self) -> Vec<(u64, u64)> {
        self.removals.iter().map(|removal| (removal.number, removal.rows)).collect()
    }

    fn removal(&mut self, number: u64) -> Option<&mut Removal> {
        self.removals.iter_mut().rfind(|removal| removal.number == number)
    }

    fn add_removal(&mut self, removal: Removal) {
        if self.removals.len() >= REMOVALS {
            self.removals.pop_front();
        }
        self.removals.push_back(removal);
    }
}

/// What is to be done with a push.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Apply the tables whose flag is set.
    Apply(Vec<bool>),
    /// Acknowledge, change nothing.
    Duplicate,
}

impl Verdict {
    /// Of flags that tell which tables have not seen the push.
    fn of(is_new: Vec<bool>) -> Self {
        if is_new.contains(&true) {
            Self::Apply(is_new)
        } else {
            Self::Duplicate
        }
    }
}

impl Sessions {
    /// Memory that they hold, about.
    pub(super) fn memory_bytes(&self) -> u64 {
        let steps = |session: &Session| session.steps.capacity() * size_of::<(TableId, i64)>();
        let steps: usize = self.sessions.values().map(steps).sum();
        let removals = |session: &Session| session.removals.capacity() * size_of::<Removal>();
        let removals: usize = self.sessions.values().map(removals).sum();
        let sessions = self.sessions.capacity() * size_of::<(u64, Session)>();
        let clients = self.clients.capacity() * size_of::<(String, Client)>();
        (steps + removals + sessions + clients) as u64
    }

    /// Meets a session: its last push, and whether it is the new owner of its client, which must
    /// be journaled. A session without a client is remembered from its first push on: most only
    /// read. `uptime` is in seconds since the store was opened, here and below.
    pub(super) fn attach(
        &mut self,
        session: u64,
        client_id: &str,
        uptime: u64,
    ) -> Result<(u64, bool)> {
        self.check_owner(session)?;
        if client_id.is_empty() && !self.sessions.contains_key(&session) {
            return Ok((0, false));
        }
        self.remember(session);
        let known = self.sessions.entry(session).or_default();
        known.last_used = self.opened_at + uptime;
        let last_push = known.last_push;
        let is_new = !client_id.is_empty() && known.client_id != client_id;
        if is_new {
            known.client_id = client_id.to_owned();
            self.take_over(session, client_id);
        }
        Ok((last_push, is_new))
    }

    /// Forgets all: a snapshot follows.
    pub(super) fn clear(&mut self) {
        self.known.write().clear();
        *self = Self { known: self.known(), ..Self::default() };
    }

    /// Which sessions are remembered, now and later.
    pub(super) fn known(&self) -> Known {
        self.known.clone()
    }

    fn remember(&self, session: u64) {
        if !self.sessions.contains_key(&session) {
            self.known.write().insert(session);
        }
    }

    fn take_over(&mut self, session: u64, client_id: &str) {
        let client = self.clients.entry(client_id.to_owned()).or_default();
        let before = std::mem::replace(&mut client.session, session);
        if before == session {
            return;
        }
        let old = self.sessions.get(&before).filter(|old| old.client_id == client_id);
        if let Some(old) = old {
            client.previous = Some(before);
            for (&table, &step) in &old.steps {
                let known = client.steps.entry(table).or_insert(step);
                *known = step.max(*known);
            }
        }
    }

    fn check_owner(&self, session: u64) -> Result<()> {
        let Some(known) = self.sessions.get(&session) else { return Ok(()) };
        match self.clients.get(&known.client_id) {
            Some(client) if client.session != session => Err(Error::unavailable(format!(
                "client {:?} was taken over by a newer session; this one may not push any more",
                known.client_id
            ))),
            _ => Ok(()),
        }
    }

    /// Decides on a push; `note` it once it is in the journal. `name` is how errors call a table.
    pub(super) fn decide(
        &self,
        push: Push,
        tables: &[TableId],
        name: impl Fn(TableId) -> String,
    ) -> Result<Verdict> {
        self.check_owner(push.session)?;
        let all = Verdict::Apply(vec![true; tables.len()]);
        let Some(session) = self.sessions.get(&push.session) else { return Ok(all) };
        if push.number <= session.last_push {
            return Ok(Verdict::Duplicate);
        }
        let Some(step) = push.step else { return Ok(all) };
        if push.session == WORKERS_SESSION {
            let is_new = |table| session.steps.get(table).is_none_or(|&last| step > last);
            return Ok(Verdict::of(tables.iter().map(is_new).collect()));
        }
        for table in tables {
            if let Some(&last) = session.steps.get(table).filter(|&&last| step <= last) {
                return Err(Error::bad_input(format!(
                    "table {:?}: step is {step}, but this session has pushed step {last} to it; \
                     give steps that grow from push to push",
                    name(*table)
                )));
            }
        }
        let done = self.clients.get(&session.client_id).map(|client| &client.steps);
        let is_new = |table| done.and_then(|d| d.get(table)).is_none_or(|&last| step > last);
        Ok(Verdict::of(tables.iter().map(is_new).collect()))
    }

    /// The snapshot that opens a journal file; sessions idle for an hour are left out.
    pub(super) fn records(&mut self, uptime: u64) -> Vec<SessionRecord> {
        let now = self.opened_at + uptime;
        self.sessions.retain(|_, session| session.last_used + IDLE_SECONDS > now);
        self.known.write().retain(|session| self.sessions.contains_key(session));
        let live = &self.sessions;
        self.clients.retain(|_, client| live.contains_key(&client.session));
        let is_owner = |session: u64, known: &Session| {
            self.clients.get(&known.client_id).is_some_and(|client| client.session == session)
        };
        let mut records: Vec<SessionRecord> =
            self.clients.iter().filter_map(|(id, client)| self.past(id, client)).collect();
        let of_past: HashSet<u64> = records.iter().map(|record| record.session).collect();
        let mut owners = Vec::new();
        for (&session, known) in &self.sessions {
            let list = if is_owner(session, known) { &mut owners } else { &mut records };
            if !of_past.contains(&session) {
                list.push(known.record(session));
            }
        }
        // Whoever comes last owns the client again, see `restore`.
        records.append(&mut owners);
        records
    }

    /// What a client had done before its session: kept as the session before, for as long.
    fn past(&self, client_id: &str, client: &Client) -> Option<SessionRecord> {
        let session = client.previous?;
        let owner = self.sessions.get(&client.session)?;
        let known = self.sessions.get(&session);
        let number = known.map_or(0, |known| known.last_push);
        Some(SessionRecord {
            session,
            client_id: client_id.to_owned(),
            number,
            last_used: owner.last_used,
            steps: client.steps.iter().map(|(&table, &step)| (table, step)).collect(),
            removals: known.map_or_else(Vec::new, Session::removal_records),
        })
    }

    /// Steps that a client has made in tables of these ids, in a store before this one. A session
    /// stands in for one that is not known: whoever comes as that client takes over from it.
    pub(super) fn restore_steps(
        &mut self,
        client_id: &str,
        steps: &[(TableId, i64)],
        stand_in: u64,
        uptime: u64,
    ) -> Result<()> {
        if !self.clients.contains_key(client_id) {
            self.attach(stand_in, client_id, uptime)?;
        }
        let client = self.clients.entry(client_id.to_owned()).or_default();
        // Under its name a snapshot keeps them.
        client.previous.get_or_insert(!stand_in);
        for &(table, step) in steps {
            let known = client.steps.entry(table).or_insert(step);
            *known = step.max(*known);
        }
        Ok(())
    }

    /// The last step of each client that names itself in each table that it gave one for, in this
    /// session and those before.
    pub(super) fn client_steps(&self) -> Vec<(String, HashMap<TableId, i64>)> {
        let steps = |(id, client): (&String, &Client)| {
            let mut steps = client.steps.clone();
            let owner = self.sessions.get(&client.session);
            for (&table, &step) in owner.into_iter().flat_map(|owner| &owner.steps) {
                let known = steps.entry(table).or_insert(step);
                *known = step.max(*known);
            }
            (id.clone(), steps)
        };
        let mut all: Vec<_> = self.clients.iter().map(steps).collect();
        all.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        all
    }

    /// Takes over a snapshot. Sessions of one client are told apart by their last use, and within
    /// a second by their order. The clock goes on from the last use of any: time in which the
    /// store was closed makes nobody idle.
    pub(super) fn restore(&mut self, mut records: Vec<SessionRecord>) {
        self.opened_at = records.iter().map(|record| record.last_used).max().unwrap_or(0);
        records.sort_by_key(|record| record.last_used);
        for record in records {
            let told = |(number, rows)| Removal { number, rows, is_told: true };
            let session = Session {
                client_id: record.client_id.clone(),
                last_push: record.number,
                last_used: record.last_used,
                steps: record.steps.into_iter().collect(),
                removals: record.removals.into_iter().map(told).collect(),
            };
            self.remember(record.session);
            self.sessions.insert(record.session, session);
            if !record.client_id.is_empty() {
                self.take_over(record.session, &record.client_id);
            }
        }
    }

    /// Notes a push as done.
    pub(super) fn note(&mut self, push: Push, tables: &[TableId], uptime: u64) {
        self.remember(push.session);
        let session = self.sessions.entry(push.session).or_default();
        session.last_push = session.last_push.max(push.number);
        session.last_used = self.opened_at + uptime;
        if let Some(step) = push.step {
            session.steps.extend(tables.iter().map(|&table| (table, step)));
        }
    }

    /// Notes how many rows a removal found, for its duplicates.
    pub(super) fn note_removal(&mut self, session: u64, number: u64, rows: u64) {
        let Some(session) = self.sessions.get_mut(&session) else { return };
        let told = Removal { number, rows, is_told: true };
        match session.removal(number) {
            Some(known) => *known = told,
            None => session.add_removal(told),
        }
    }

    /// Notes how many rows the replay of a removal found, in all of its windows so far; counts only
    /// where the removal itself left no note.
    pub(super) fn note_replayed(&mut self, session: u64, number: u64, rows: u64) {
        let Some(session) = self.sessions.get_mut(&session) else { return };
        match session.removal(number) {
            Some(known) if known.is_told => {}
            Some(known) => known.rows = rows,
            None => session.add_removal(Removal { number, rows, is_told: false }),
        }
    }

    /// How many rows the removal of this number found; 0 if that is not known.
    pub(super) fn removal(&self, push: Push) -> u64 {
        let removals = self.sessions.get(&push.session).map(|session| &session.removals);
        let known = removals.and_then(|known| known.iter().rfind(|r| r.number == push.number));
        known.map_or(0, |removal| removal.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_push_together_replay_steps_within_their_session() {
        let mut sessions = Sessions::default();
        let round = |number, step| push(WORKERS_SESSION, number, Some(step));
        let apply = |flags: &[bool]| Verdict::Apply(flags.to_vec());
        assert_eq!(sessions.admit(round(1, 5), &[7], 0).unwrap(), apply(&[true]));
        assert_eq!(sessions.admit(round(2, 5), &[7], 0).unwrap(), Verdict::Duplicate);
        assert_eq!(sessions.admit(round(3, 5), &[7, 8], 0).unwrap(), apply(&[false, true]));
        assert_eq!(sessions.admit(round(4, 6), &[7, 8], 0).unwrap(), apply(&[true, true]));
        assert_eq!(sessions.admit(round(4, 9), &[7], 0).unwrap(), Verdict::Duplicate, "number");
    }

    fn push(session: u64, number: u64, step: Option<i64>) -> Push {
        Push { session, number, step }
    }

    impl Sessions {
        fn admit(&mut self, push: Push, tables: &[TableId], now: u64) -> Result<Verdict> {
            let verdict = self.decide(push, tables, |id| id.to_string())?;
            self.note(push, tables, now);
            Ok(verdict)
        }
    }

    #[test]
    fn a_push_counts_once() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.attach(1, "", 0).unwrap(), (0, false));
        let apply = Verdict::Apply(vec![true]);
        assert_eq!(sessions.admit(push(1, 1, None), &[7], 0).unwrap(), apply);
        assert_eq!(sessions.admit(push(1, 1, None), &[7], 0).unwrap(), Verdict::Duplicate);
        assert_eq!(sessions.attach(1, "", 0).unwrap(), (1, false));
    }

    /// Readers come by the thousand, and none needs to be known again.
    #[test]
    fn a_session_without_client_is_remembered_from_its_first_push() {
        let mut sessions = Sessions::default();
        let known = sessions.known();
        for session in 1..=1000 {
            assert_eq!(sessions.attach(session, "", 0).unwrap(), (0, false));
        }
        assert_eq!(sessions.records(0).len(), 0);
        sessions.admit(push(7, 1, None), &[7], 0).unwrap();
        assert_eq!(sessions.records(0).len(), 1);
        assert_eq!(sessions.attach(8, "trainer", 0).unwrap(), (0, true));
        assert_eq!(sessions.attach(8, "trainer", 0).unwrap(), (0, false));
        assert_eq!(sessions.attach(9, "trainer", 0).unwrap(), (0, true));
        assert!(sessions.attach(8, "trainer", 0).is_err());
        let records = sessions.records(0);
        assert_eq!(records.len(), 3);
        let told = || {
            let mut told: Vec<u64> = known.read().iter().copied().collect();
            told.sort_unstable();
            told
        };
        assert_eq!(told(), [7, 8, 9]);
        sessions.clear();
        assert!(told().is_empty());
        sessions.restore(records);
        assert_eq!(told(), [7, 8, 9]);
        sessions.records(2 * IDLE_SECONDS);
        assert!(told().is_empty());
    }

    #[test]
    fn the_last_removals_are_remembered() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.removal(push(1, 1, None)), 0);
        for number in 1..=300 {
            let removal = push(1, number, None);
            sessions.admit(removal, &[7], 0).unwrap();
            sessions.note_removal(1, number, number + 1000);
        }
        let known = |number| sessions.removal(push(1, number, None));
        assert_eq!([known(44), known(45), known(300), known(301)], [0, 1045, 1300, 0]);
    }

    /// A replay finds fewer rows than the removal did, where some were written back as removed.
    #[test]
    fn what_a_removal_told_outweighs_its_replay() {
        let mut sessions = Sessions::default();
        let removal = push(1, 1, None);
        sessions.admit(removal, &[7], 0).unwrap();
        for rows in [2, 5] {
            // Of its first window, and of its second as well.
            sessions.note_replayed(1, 1, rows);
            assert_eq!(sessions.removal(removal), rows);
        }
        sessions.note_removal(1, 1, 7);
        sessions.note_replayed(1, 1, 0);
        assert_eq!(sessions.removal(removal), 7);
        let mut restored = Sessions::default();
        restored.restore(sessions.records(1));
        restored.note_replayed(1, 1, 0);
        assert_eq!(restored.removal(removal), 7);
    }

    /// Idle times go on from where a snapshot left them: closed stores make nobody idle.
    #[test]
    fn a_restart_keeps_ages_and_adds_none() {
        let mut sessions = Sessions::default();
        sessions.attach(1, "old", 100).unwrap();
        sessions.attach(2, "new", 3000).unwrap();
        let records = sessions.records(3000);
        let mut restored = Sessions::default();
        restored.restore(records);
        assert_eq!(restored.records(600).len(), 2);
        assert_eq!(restored.records(800).len(), 1);
        assert_eq!(restored.records(3700).len(), 0);
    }

    #[test]
    fn a_new_session_replays_steps_and_silences_the_old() {
        let mut sessions = Sessions::default();
        sessions.attach(1, "trainer", 0).unwrap();
        for step in 1..=5 {
            sessions.admit(push(1, step, Some(step as i64)), &[7], 0).unwrap();
        }
        assert!(sessions.admit(push(1, 6, Some(5)), &[7], 0).is_err());
        sessions.attach(2, "trainer", 0).unwrap();
        assert!(sessions.admit(push(1, 7, Some(9)), &[7], 0).is_err());
        assert_eq!(sessions.admit(push(2, 1, Some(4)), &[7], 0).unwrap(), Verdict::Duplicate);
        let apply = Verdict::Apply(vec![true, false]);
        assert_eq!(sessions.admit(push(2, 2, Some(5)), &[8, 7], 0).unwrap(), apply);
        let records = sessions.records(1);
        let mut restored = Sessions::default();
        restored.restore(records);
        assert!(restored.attach(1, "trainer", 2).is_err());
        assert_eq!(restored.admit(push(2, 2, None), &[7], 2).unwrap(), Verdict::Duplicate);
    }

    /// A snapshot once told the sessions of a client apart by seconds alone, and took the steps of
    /// the sessions before for steps of this one.
    #[test]
    fn a_snapshot_keeps_who_took_over_and_what_was_done_before() {
        for attempt in 0..50 {
            let mut sessions = Sessions::default();
            for session in [attempt, attempt + 1, attempt + 2] {
                sessions.attach(session, "trainer", 0).unwrap();
                let step = Some(session as i64);
                sessions.admit(push(session, 1, step), &[7], 0).unwrap();
            }
            for _ in 0..2 {
                let records = sessions.records(1);
                sessions = Sessions::default();
                sessions.restore(records);
            }
            assert!(sessions.attach(attempt, "trainer", 2).is_err());
            assert!(sessions.attach(attempt + 1, "trainer", 2).is_err());
            sessions.attach(attempt + 2, "trainer", 2).unwrap();
            sessions.attach(attempt + 3, "trainer", 2).unwrap();
            let replayed = Some(attempt as i64 + 2);
            let verdict = sessions.admit(push(attempt + 3, 1, replayed), &[7], 2).unwrap();
            assert_eq!(verdict, Verdict::Duplicate);
            let records = sessions.records(3);
            sessions = Sessions::default();
            sessions.restore(records);
            let verdict = sessions.decide(push(attempt + 3, 2, replayed), &[7], |_| String::new());
            assert!(verdict.is_err(), "it grows within the session");
            let other =
                sessions.decide(push(attempt + 3, 2, Some(attempt as i64 + 3)), &[7], |_| {
                    String::new()
                });
            assert_eq!(other.unwrap(), Verdict::Apply(vec![true]));
        }
    }

    #[test]
    fn steps_before_are_duplicates_after_a_snapshot_too() {
        let mut sessions = Sessions::default();
        sessions.attach(1, "trainer", 0).unwrap();
        sessions.admit(push(1, 1, Some(5)), &[7], 0).unwrap();
        sessions.attach(2, "trainer", 0).unwrap();
        let records = sessions.records(1);
        let mut restored = Sessions::default();
        restored.restore(records);
        let verdict = restored.admit(push(2, 1, Some(3)), &[7], 1).unwrap();
        assert_eq!(verdict, Verdict::Duplicate);
        // The session before is forgotten, its steps are not.
        restored.attach(2, "trainer", 4000).unwrap();
        let records = restored.records(4001);
        let mut restored = Sessions::default();
        restored.restore(records);
        let verdict = restored.decide(push(2, 2, Some(4)), &[7], |_| String::new()).unwrap();
        assert_eq!(verdict, Verdict::Duplicate);
    }

    #[test]
    fn idle_sessions_are_forgotten() {
        let mut sessions = Sessions::default();
        sessions.attach(1, "a", 0).unwrap();
        assert_eq!(sessions.records(10).len(), 1);
        assert_eq!(sessions.records(4000).len(), 0);
    }
}
