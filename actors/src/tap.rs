//! What operators watch: requests on their way from the labeler to the store.
//!
//! Nobody watching costs one atomic load a batch. Who watches may lose requests, which are counted, and never holds up a batch. Bound:
//! [`OBSERVERS_MAX`], [`CALLS_A_BATCH_MAX`] calls of a batch, [`BATCHES_MAX`] batches that wait. Leaves out: names of ids, and who asks (`node`).

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use metaflow_schema::tables::L7FlowLog;
use tokio::sync::mpsc;

use crate::rows::Rows;

/// Watchers of one node at a time.
pub const OBSERVERS_MAX: usize = 8;
/// More of one batch than people read; the rest counts as dropped.
pub const CALLS_A_BATCH_MAX: usize = 1_000;
/// Batches that wait for a watcher.
pub const BATCHES_MAX: usize = 32;
/// Longest text of a call that is shown.
const TEXT_BYTES_MAX: usize = 256;

/// One request, as its row says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub agent_id: u32,
    /// End of the request, microseconds since 1970.
    pub time: u64,
    pub duration_us: u64,
    pub client: End,
    pub server: End,
    pub observation_point: u8,
    pub l7_protocol: u8,
    pub status: u8,
    pub code: i32,
    pub request_type_id: u32,
    pub request_domain_id: u32,
    pub endpoint_id: u32,
    pub resource: String,
    pub exception: String,
    pub trace_id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub service_type: u8,
    pub service_id: u32,
    pub ip: [u8; 16],
    pub port: u16,
}

/// Which calls are wanted, as far as numbers say it. None: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    pub agent_id: Option<u32>,
    pub protocols: Option<Vec<u8>>,
    pub statuses: Option<Vec<u8>>,
}

/// Where batches pass.
#[derive(Debug, Default)]
pub struct Tap {
    open: AtomicUsize,
    outlets: Mutex<Vec<Outlet>>,
    numbers: AtomicU64,
}

#[derive(Debug)]
struct Outlet {
    number: u64,
    wish: Wish,
    calls: mpsc::Sender<Vec<Call>>,
    dropped: Arc<AtomicU64>,
}

/// A watcher; dropping it ends it.
#[derive(Debug)]
pub struct Observer {
    tap: Arc<Tap>,
    number: u64,
    calls: mpsc::Receiver<Vec<Call>>,
    dropped: Arc<AtomicU64>,
}

impl Tap {
    /// Whether anybody watches.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) != 0
    }

    fn outlets(&self) -> MutexGuard<'_, Vec<Outlet>> {
        self.outlets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches from now on; none when too many do.
    pub fn observe(self: &Arc<Self>, wish: Wish) -> Option<Observer> {
        let mut outlets = self.outlets();
        if outlets.len() >= OBSERVERS_MAX {
            return None;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (sender, calls) = mpsc::channel(BATCHES_MAX);
        let dropped = Arc::<AtomicU64>::default();
        outlets.push(Outlet { number, wish, calls: sender, dropped: Arc::clone(&dropped) });
        self.open.store(outlets.len(), Ordering::Relaxed);
        Some(Observer { tap: Arc::clone(self), number, calls, dropped })
    }

    /// Shows the requests of a labelled batch to whoever watches. Never waits.
    pub fn show(&self, agent_id: u32, rows: &Rows) {
        let Rows::L7FlowLog(block) = rows else { return };
        if !self.is_open() {
            return;
        }
        for outlet in self.outlets().iter() {
            let (calls, left) = outlet.wish.pick(agent_id, block);
            let mut dropped = left;
            if !calls.is_empty() {
                let count = calls.len() as u64;
                dropped += outlet.calls.try_send(calls).map_or(count, |()| 0);
            }
            outlet.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }
}

impl Observer {
    /// The next calls, and how many were dropped since the last ones.
    pub async fn next(&mut self) -> Option<(Vec<Call>, u64)> {
        let calls = self.calls.recv().await?;
        Some((calls, self.dropped.swap(0, Ordering::Relaxed)))
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let mut outlets = self.tap.outlets();
        outlets.retain(|outlet| outlet.number != self.number);
        self.tap.open.store(outlets.len(), Ordering::Relaxed);
    }
}

impl Wish {
    /// The wanted calls of a block, and how many more there were.
    fn pick(&self, agent_id: u32, block: &L7FlowLog) -> (Vec<Call>, u64) {
        let Self { agent_id: wanted, protocols, statuses } = self;
        if wanted.is_some_and(|wanted| wanted != agent_id) {
            return (vec![], 0);
        }
        let has = |list: &Option<Vec<u8>>, value: u8| list.as_ref().is_none_or(|list| list.contains(&value));
        let mut wanted = (0..block.time.len()).filter(|row| {
            has(protocols, block.l7_protocol[*row]) && has(statuses, block.response_status[*row])
        });
        let calls = wanted.by_ref().take(CALLS_A_BATCH_MAX).map(|row| call(agent_id, block, row)).collect();
        (calls, wanted.count() as u64)
    }
}

fn call(agent_id: u32, block: &L7FlowLog, row: usize) -> Call {
    let end = |tags: &metaflow_schema::tags::Tags, port: u16| End {
        service_type: tags.auto_service_type[row],
        service_id: tags.auto_service_id[row],
        ip: tags.ip[row],
        port,
    };
    Call {
        agent_id,
        time: u64::try_from(block.time[row]).unwrap_or(0),
        duration_us: block.response_duration[row],
        client: end(&block.tags_0, block.client_port[row]),
        server: end(&block.tags_1, block.server_port[row]),
        observation_point: block.observation_point[row],
        l7_protocol: block.l7_protocol[row],
        status: block.response_status[row],
        code: block.response_code[row],
        request_type_id: block.request_type_id[row],
        request_domain_id: block.request_domain_id[row],
        endpoint_id: block.endpoint_id[row],
        resource: shortened(block.request_resource.text(row)),
        exception: shortened(block.response_exception.text(row)),
        trace_id: shortened(block.trace_id.text(row)),
    }
}

fn shortened(text: &str) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dictionary::{Config, Dictionary, NodeId},
        disk::Disk,
        labeler::{Input, Snapshot},
        rows::BatchId,
    };

    /// Requests, each second one of them failed.
    fn rows(count: u32) -> Rows {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        let names =
            Dictionary::open(disk, Config::new(NodeId::new(1).unwrap()), &Default::default()).unwrap();
        let log = metaflow_wire::L7FlowLog {
            endpoints: Some(metaflow_wire::Endpoints::default()),
            response_status: (0..count).map(|row| 3 * (row % 2)).collect(),
            l7_protocol: vec![20; count as usize],
            request_resource: vec![1; count as usize],
            ..Default::default()
        };
        let columns = metaflow_wire::Columns {
            strings: vec![String::new(), "\u{e9}".repeat(1_000)],
            addresses: vec![vec![10, 0, 0, 1]],
            rows: Some(metaflow_wire::columns::Rows::L7FlowLog(log)),
        };
        let id = BatchId { agent_id: 9 << 22 | 7, seq: 1 };
        let input = Input { snapshot: &Snapshot::default(), names: &names, id };
        input.label_columns(metaflow_wire::Table::L7FlowLog, count as usize, columns).unwrap()
    }

    #[tokio::test]
    async fn who_watches_gets_what_it_wants_within_bounds_and_hears_of_the_rest() {
        let tap = Arc::new(Tap::default());
        let rows = rows(2 * CALLS_A_BATCH_MAX as u32 + 10);
        tap.show(7, &rows);
        let wish = Wish { statuses: Some(vec![3]), agent_id: Some(7), ..Wish::default() };
        let mut observer = tap.observe(wish).unwrap();
        tap.show(8, &rows);
        tap.show(7, &rows);
        let (calls, dropped) = observer.next().await.unwrap();
        assert_eq!(
            (calls.len(), dropped),
            (CALLS_A_BATCH_MAX, 5),
            "nothing from before, of others, or unwanted"
        );
        assert!(calls.iter().all(|call| call.agent_id == 7 && call.status == 3 && call.l7_protocol == 20));
        assert_eq!(calls[0].resource.len(), TEXT_BYTES_MAX);
        // Nobody reads: batches pass all the same.
        for _ in 0..BATCHES_MAX + 3 {
            tap.show(7, &rows);
        }
        let (_, dropped) = observer.next().await.unwrap();
        assert_eq!(dropped as usize, 5 * (BATCHES_MAX + 3) + 3 * CALLS_A_BATCH_MAX);
    }

    #[test]
    fn watchers_are_few_and_the_last_one_closes_the_tap() {
        let tap = Arc::new(Tap::default());
        let observers: Vec<_> = (0..OBSERVERS_MAX).map(|_| tap.observe(Wish::default()).unwrap()).collect();
        assert!(tap.observe(Wish::default()).is_none() && tap.is_open());
        drop(observers);
        assert!(!tap.is_open());
        assert!(tap.observe(Wish::default()).is_some());
    }
}
