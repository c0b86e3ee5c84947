//! What is kept here for clients: descriptors of what they have open, and the answers to their last changes.
//!
//! Neither has to survive this daemon. A descriptor that is not here any more is opened anew from its warrant,
//! unless the file has lost its last name. A change that comes again after its answer was dropped is carried
//! out again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::process::{Resource, getrlimit};
use tokio::sync::watch;
use unum_proto::ids::NodeId;

/// Descriptors held for all clients. Of more, the ones longest unused are closed.
const DESCRIPTORS_MAX: usize = 16_384;
/// Answers kept for each mount of a client.
const ANSWERS_MAX: usize = 512;
/// Mounts whose answers are kept; the one that called first goes first.
const MOUNTS_MAX: usize = 256;

struct Held {
    file: Arc<OwnedFd>,
    /// How often it was opened and not closed.
    opens: u64,
    used: u64,
}

pub struct Opens {
    /// Protects the descriptors. Never held across a call that may wait.
    held: Mutex<Descriptors>,
    descriptors_max: usize,
}

#[derive(Default)]
struct Descriptors {
    by_warrant: HashMap<(NodeId, Bytes), Held>,
    /// The same in the order of their last use.
    by_use: BTreeMap<u64, (NodeId, Bytes)>,
    clock: u64,
}

impl Default for Opens {
    fn default() -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let half = usize::try_from(limit / 2).unwrap_or(usize::MAX);
        Self { held: Mutex::default(), descriptors_max: half.min(DESCRIPTORS_MAX) }
    }
}

impl Opens {
    /// A client opened it once more.
    pub fn opened(&self, client: NodeId, warrant: &Bytes, file: OwnedFd) {
        let mut held = self.held();
        held.enter(client, warrant, Arc::new(file)).opens += 1;
        held.shrink(self.descriptors_max);
    }

    pub fn get(&self, client: NodeId, warrant: &Bytes) -> Option<Arc<OwnedFd>> {
        self.held().touch(client, warrant)
    }

    /// What had to be opened anew.
    pub fn reopened(&self, client: NodeId, warrant: &Bytes, file: OwnedFd) -> Arc<OwnedFd> {
        let mut held = self.held();
        let file = held.enter(client, warrant, Arc::new(file)).file.clone();
        held.shrink(self.descriptors_max);
        file
    }

    /// A client closed it.
    pub fn released(&self, client: NodeId, warrant: &Bytes) {
        let mut held = self.held();
        if let Some(entry) = held.by_warrant.get_mut(&(client, warrant.clone())) {
            entry.opens = entry.opens.saturating_sub(1);
            if entry.opens == 0 {
                held.remove(&(client, warrant.clone()));
            }
        }
    }

    /// Closes what clients have open that are gone for good.
    pub fn keep_only(&self, lives: impl Fn(NodeId) -> bool) {
        let mut held = self.held();
        let gone: Vec<_> =
            held.by_warrant.keys().filter(|(node, _)| !lives(*node)).cloned().collect();
        for key in gone {
            held.remove(&key);
        }
    }

    pub fn count(&self) -> usize {
        self.held().by_warrant.len()
    }

    fn held(&self) -> MutexGuard<'_, Descriptors> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Descriptors {
    fn enter(&mut self, client: NodeId, warrant: &Bytes, file: Arc<OwnedFd>) -> &mut Held {
        let key = (client, warrant.clone());
        self.clock += 1;
        let used = self.clock;
        let fresh = Held { file, opens: 0, used };
        let held = self.by_warrant.entry(key.clone()).or_insert(fresh);
        self.by_use.remove(&held.used);
        held.used = used;
        self.by_use.insert(used, key);
        held
    }

    fn touch(&mut self, client: NodeId, warrant: &Bytes) -> Option<Arc<OwnedFd>> {
        let held = self.by_warrant.get_mut(&(client, warrant.clone()))?;
        self.clock += 1;
        if let Some(key) = self.by_use.remove(&held.used) {
            self.by_use.insert(self.clock, key);
        }
        held.used = self.clock;
        Some(held.file.clone())
    }

    fn remove(&mut self, key: &(NodeId, Bytes)) {
        if let Some(held) = self.by_warrant.remove(key) {
            self.by_use.remove(&held.used);
        }
    }

    fn shrink(&mut self, max: usize) {
        while self.by_warrant.len() > max {
            let Some((_, key)) = self.by_use.pop_first() else { return };
            self.by_warrant.remove(&key);
        }
    }
}

/// Names a change: the client, its mount, and the number that the mount's kernel gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChangeId {
    pub client: NodeId,
    pub lane: u64,
    pub number: u64,
}

/// The answers to the last changes, and those under way.
pub struct Answers<T> {
    mounts: Mutex<Mounts<T>>,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self { mounts: Mutex::default() }
    }
}

/// The answer to one change, when it is there.
type Coming<T> = watch::Receiver<Option<T>>;

/// Of one mount, by the numbers of the changes.
type Last<T> = VecDeque<(u64, Coming<T>)>;

struct Mounts<T> {
    order: VecDeque<(NodeId, u64)>,
    last: HashMap<(NodeId, u64), Last<T>>,
}

impl<T> Default for Mounts<T> {
    fn default() -> Self {
        Self { order: VecDeque::new(), last: HashMap::new() }
    }
}

impl<T: Clone + Send + Sync + 'static> Answers<T> {
    /// The first answer of this change. `perform` is started only if nobody has; it goes on to its end even if
    /// the caller does not wait for it.
    pub async fn once<F>(&self, id: ChangeId, perform: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut answer = self.begin(id, perform);
        let came = answer.wait_for(Option::is_some).await.ok()?;
        came.clone()
    }

    fn begin<F>(&self, id: ChangeId, perform: impl FnOnce() -> F) -> Coming<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        let last = mounts.of((id.client, id.lane));
        if let Some((_, answer)) = last.iter().find(|(number, _)| *number == id.number) {
            return answer.clone();
        }
        let (tell, answer) = watch::channel(None);
        last.push_back((id.number, answer.clone()));
        if last.len() > ANSWERS_MAX {
            last.pop_front();
        }
        drop(mounts);
        let performing = perform();
        drop(tokio::spawn(async move {
            let done = performing.await;
            tell.send_replace(Some(done));
        }));
        answer
    }
}

impl<T> Mounts<T> {
    fn of(&mut self, mount: (NodeId, u64)) -> &mut Last<T> {
        if !self.last.contains_key(&mount) {
            self.order.push_back(mount);
            if self.order.len() > MOUNTS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.last.remove(&oldest);
            }
        }
        self.last.entry(mount).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn file() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_descriptor_lives_until_its_last_close_or_its_client_is_gone() {
        let opens = Opens { held: Mutex::default(), descriptors_max: 3 };
        let (a, warrant) = (NodeId(1), Bytes::from_static(b"t"));
        opens.opened(a, &warrant, file());
        opens.opened(a, &warrant, file());
        assert!(opens.get(NodeId(2), &warrant).is_none(), "it is this client's alone");
        opens.released(a, &warrant);
        assert!(opens.get(a, &warrant).is_some());
        opens.released(a, &warrant);
        assert!(opens.get(a, &warrant).is_none());
        opens.released(a, &warrant);
        opens.opened(a, &warrant, file());
        opens.opened(NodeId(2), &warrant, file());
        opens.keep_only(|node| node == NodeId(2));
        assert_eq!(opens.count(), 1);
        // The one that was not used for longest goes.
        for name in [&b"x"[..], b"y", b"z"] {
            opens.reopened(a, &Bytes::from_static(name), file());
            assert!(opens.get(a, &Bytes::from_static(b"x")).is_some());
        }
        assert_eq!(opens.count(), 3);
        assert!(opens.get(NodeId(2), &warrant).is_none());
    }

    #[tokio::test]
    async fn a_change_is_carried_out_once_even_if_its_caller_goes_away() {
        let answers = Answers::default();
        let done = Arc::new(AtomicU32::new(0));
        let id = |number| ChangeId { client: NodeId(1), lane: 7, number };
        let perform = || {
            let done = done.clone();
            move || async move {
                tokio::task::yield_now().await;
                done.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        // The first caller does not wait.
        let first = answers.once(id(1), perform());
        assert!(futures_util::FutureExt::now_or_never(first).is_none());
        assert_eq!(answers.once(id(1), perform()).await, Some(1));
        assert_eq!(answers.once(id(1), perform()).await, Some(1));
        assert_eq!(answers.once(id(2), perform()).await, Some(2));
        for number in 3..3 + ANSWERS_MAX as u64 {
            answers.once(id(number), perform()).await;
        }
        assert_ne!(answers.once(id(1), perform()).await, Some(1), "it was dropped");
    }
}
