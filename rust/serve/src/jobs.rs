//! Long work on a store, which its caller asks after: checkpoints and restores. The caller names a
//! job; whoever asks first begins it, and asking again, also over another connection, begins
//! nothing twice. Questions and answers are JSON (docs/protocol.md).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hybridps_core::{
    publish, Draft, Error, Progress, RestoreRequest, Result, SaveRequest, ShardSummary, Store,
};
use parking_lot::{Condvar, Mutex};
use serde::Deserialize;
use serde_json::{json, Value};

/// How long one question waits for the end.
const WAIT: Duration = Duration::from_millis(200);
/// How long the outcome of a job is kept for who asks again, and of how many.
const KEPT: Duration = Duration::from_secs(600);
const KEPT_MAX: usize = 64;
/// Longest name of a job.
const NAME_MAX: usize = 64;

/// What is to be done.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    /// A checkpoint in `path` is begun: gives `id` and `parent`.
    Begin { path: PathBuf, full: bool },
    /// This server's file of it is written: gives what the manifest says of it.
    Save { path: PathBuf, id: String, parent: Option<String>, rate: u64 },
    /// The manifest is written, the files of all servers being there: gives it.
    Publish { path: PathBuf, id: String, draft: Draft },
    /// Tables are read: gives `id`, `step` and rows by table.
    Stage {
        path: PathBuf,
        id: Option<String>,
        step: Option<i64>,
        tables: Option<Vec<String>>,
        slots: bool,
    },
    /// They replace those of their names.
    Commit,
    /// They are given up.
    GiveUp,
}

/// The jobs of a store.
#[derive(Default)]
pub struct Jobs {
    jobs: Mutex<HashMap<String, Arc<Job>>>,
}

#[derive(Default)]
struct Job {
    progress: Progress,
    outcome: Mutex<Option<(Result<Value>, Instant)>>,
    ended: Condvar,
}

impl Jobs {
    /// Asks after the job `name`, and begins it if there is none: gives `{"result": ...}` once it
    /// has ended, else `{"done": bytes, "total": bytes}` after a fifth of a second.
    ///
    /// # Errors
    /// `BadInput` for a question that cannot be read; what the job ended with.
    pub fn ask(&self, store: &Arc<Store>, name: &str, request: &str) -> Result<String> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Error::bad_input(format!("a job has a name of 1 to {NAME_MAX} bytes")));
        }
        let job = self.job(store, name, request)?;
        let mut outcome = job.outcome.lock();
        if outcome.is_none() {
            job.ended.wait_for(&mut outcome, WAIT);
        }
        match &*outcome {
            Some((Ok(result), _)) => Ok(json!({ "result": result }).to_string()),
            Some((Err(error), _)) => Err(error.clone()),
            None => {
                let (done, total) = job.progress.bytes();
                Ok(json!({ "done": done, "total": total }).to_string())
            }
        }
    }

    fn job(&self, store: &Arc<Store>, name: &str, request: &str) -> Result<Arc<Job>> {
        let mut jobs = self.jobs.lock();
        if let Some(job) = jobs.get(name) {
            return Ok(job.clone());
        }
        let request: Request = serde_json::from_str(request)
            .map_err(|error| Error::bad_input(format!("a job cannot be read: {error}")))?;
        let is_kept = |job: &Arc<Job>| {
            job.outcome.lock().as_ref().is_none_or(|(_, ended)| ended.elapsed() < KEPT)
        };
        jobs.retain(|_, job| is_kept(job));
        if jobs.len() >= KEPT_MAX {
            jobs.retain(|_, job| job.outcome.lock().is_none());
        }
        let job = Arc::<Job>::default();
        let (own, store) = (job.clone(), Arc::clone(store));
        std::thread::Builder::new()
            .name("hps-job".into())
            .spawn(move || {
                let outcome = run(&store, request, &own.progress);
                *own.outcome.lock() = Some((outcome, Instant::now()));
                own.ended.notify_all();
            })
            .map_err(|cause| Error::unavailable(format!("no thread for a job: {cause}")))?;
        jobs.insert(name.to_owned(), job.clone());
        Ok(job)
    }
}

fn run(store: &Store, request: Request, progress: &Progress) -> Result<Value> {
    match request {
        Request::Begin { path, full } => {
            let (id, parent) = store.begin_checkpoint(&path, full)?;
            Ok(json!({ "id": id, "parent": parent }))
        }
        Request::Save { path, id, parent, rate } => {
            let summary: ShardSummary =
                store.save(&SaveRequest { path, id, parent, rate }, progress)?;
            as_json(&summary)
        }
        Request::Publish { path, id, draft } => as_json(&publish(&path, &id, draft)?),
        Request::Stage { path, id, step, tables, slots } => {
            let request = RestoreRequest { path, id, step, tables, with_slots: slots };
            let restored = store.stage_restore(&request, progress)?;
            let tables: HashMap<String, u64> = restored.tables.into_iter().collect();
            Ok(json!({ "id": restored.id, "step": restored.step, "tables": tables }))
        }
        Request::Commit => store.commit_restore().map(|()| Value::Null),
        Request::GiveUp => store.give_up_restore().map(|()| Value::Null),
    }
}

fn as_json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|error| Error::bad_input(format!("a result cannot be told: {error}")))
}

/// All checkpoints in `path` as a JSON list, oldest first, and what is wrong with others.
///
/// # Errors
/// `Config` if the directory cannot be read.
pub fn checkpoints(path: PathBuf) -> Result<(String, Vec<String>)> {
    let (whole, damaged) = hybridps_core::checkpoints(&path)?;
    let damaged = damaged.into_iter().map(|error| error.message).collect();
    Ok((as_json(&whole)?.to_string(), damaged))
}

/// Reads a checkpoint whole, or all; gives its JSON.
///
/// # Errors
/// As `hybridps_core::verify`.
pub fn verify(path: PathBuf, id: Option<&str>) -> Result<String> {
    let found = hybridps_core::verify(&path, id, &Progress::default())?;
    Ok(as_json(&found)?.to_string())
}
