//! What other nodes keep of this machine's files, and taking it back.
//!
//! A client holds one *lease* here, bounded in time, and under it any number of *grants*, one for each inode:
//! its attributes, content and, of a directory, its names. A granted inode is marked before it is looked
//! at, so every later change of it is heard, whoever makes it. What is heard ends the inode's grants, and their
//! holders are told: a *recall*.
//!
//! Invariants:
//! - [`Grants::settle`] returns when every change whose system call had returned before is known to all who kept
//!   what it changed, or their lease is over;
//! - a lease is not prolonged while a recall of it is not confirmed, so nobody waits longer than its term;
//! - a client that held no lease for a moment holds no grant.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use unum_proto::ids::NodeId;
use unum_sys::fanotify::{Heard, Watcher};
use unum_sys::file_handles::FileHandle;

use super::seal::Place;

/// How long a lease lasts from when the client asks for it.
pub const TERM: Duration = Duration::from_millis(2048);
/// The home counts so much more: clocks' speeds differ, by far less than this.
const SLACK: Duration = Duration::from_millis(64);
/// Inodes that are granted at once, each held in memory by the kernel. Of more, the ones granted first are recalled.
const INODES_MAX: usize = 1 << 16;
/// How long one look for changes lasts.
const LISTEN_MAX: Duration = Duration::from_secs(60);
/// Handles in one recall; more are recalled as all.
pub const RECALLED_MAX: usize = 1024;

pub struct Grants {
    /// None: this kernel tells nobody of changes, so nothing is granted.
    watcher: Option<Watcher>,
    /// Something is granted, or was and its recall is not confirmed.
    busy: AtomicBool,
    /// Never held across an await. Marks are set and removed under it.
    state: Mutex<State>,
    /// Finds an inode that is marked, to remove the mark.
    open: Opener,
    /// Who may hold a lease, for the next daemon: it knows nothing of what this one granted.
    record: PathBuf,
}

#[derive(Default)]
struct State {
    inodes: HashMap<FileHandle, Vec<(NodeId, Place)>>,
    /// In the order in which they were granted; some are not any more.
    order: VecDeque<FileHandle>,
    holders: HashMap<NodeId, Holder>,
}

struct Holder {
    lease: u64,
    until: Instant,
    /// What is to be recalled and was not sent yet.
    queue: Recalls,
    issued: u64,
    confirmed: watch::Sender<u64>,
    work: Arc<Notify>,
}

/// Opens a place, if it is still there.
type Opener = Box<dyn Fn(&Place) -> Option<OwnedFd> + Send + Sync>;

/// What one client shall drop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recalls {
    pub places: Vec<Place>,
    pub all: bool,
}

/// Recalls for one client, and which number they reach to.
pub struct Order {
    pub recalls: Recalls,
    pub reaches: u64,
    /// Later nobody waits for it.
    pub until: Instant,
}

/// What a client that asked for a lease gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub lease: u64,
    pub term: Duration,
}

impl Grants {
    /// `record` is where a daemon's death does not reach. Also gives the clients to which an earlier daemon gave
    /// leases: what they keep is recalled, by the task that is to be started for each.
    pub fn new(
        record: &Path,
        open: impl Fn(&Place) -> Option<OwnedFd> + Send + Sync + 'static,
    ) -> (Self, Vec<NodeId>) {
        let watcher = Watcher::new();
        if let Err(error) = &watcher {
            tracing::warn!(%error, "changes here are not heard: other nodes ask for each file every time");
        }
        let before = read_record(record);
        let mut state = State::default();
        let until = Instant::now() + TERM + SLACK;
        for client in &before {
            let mut holder = Holder::new(0, until);
            holder.recall_all();
            state.holders.insert(*client, holder);
        }
        let grants = Self {
            watcher: watcher.ok(),
            busy: AtomicBool::new(!before.is_empty()),
            state: Mutex::new(state),
            open: Box::new(open),
            record: record.to_owned(),
        };
        (grants, before)
    }

    /// Prolongs a lease, or begins one. Also tells whether a task has to be started that sends the client's
    /// recalls.
    pub fn renew(&self, client: NodeId, lease: u64) -> (Lease, bool) {
        let now = Instant::now();
        let mut state = self.state();
        let known = state.holders.contains_key(&client);
        if let Some(holder) = state.holders.get_mut(&client).filter(|held| held.until > now) {
            let settled = holder.issued == *holder.confirmed.borrow();
            if settled && holder.lease == lease && lease != 0 {
                holder.until = now + TERM + SLACK;
            }
            let term = (holder.until - now).saturating_sub(SLACK);
            if holder.lease == lease && lease != 0 {
                return (Lease { lease, term }, false);
            }
            if !settled {
                // What it keeps under another lease comes first.
                return (Lease { lease: 0, term: Duration::ZERO }, false);
            }
        }
        self.lapse(&mut state, client);
        let fresh = rand::random::<u64>().max(1);
        let holder = state.holders.entry(client).or_insert_with(|| Holder::new(fresh, now));
        (holder.lease, holder.until) = (fresh, now + TERM + SLACK);
        if !known {
            write_record(&self.record, state.holders.keys());
        }
        (Lease { lease: fresh, term: TERM }, !known)
    }

    /// Lets the client keep what it will be told of the inode that `fd` is open on from now on.
    pub fn grant(&self, client: NodeId, lease: u64, place: &Place, fd: impl AsFd) -> bool {
        let (Some(watcher), Place::Inode { handle, .. }) = (&self.watcher, place) else {
            return false;
        };
        if lease == 0 {
            return false;
        }
        let mut state = self.state();
        let now = Instant::now();
        if !state.holders.get(&client).is_some_and(|held| held.lease == lease && held.until > now) {
            return false;
        }
        if let Some(granted) = state.inodes.get_mut(handle) {
            let entry = (client, place.clone());
            if !granted.contains(&entry) {
                granted.push(entry);
            }
            return true;
        }
        // Before the mark, or a change in between would not be waited for.
        self.busy.store(true, Ordering::SeqCst);
        if watcher.mark(fd).is_err() {
            return false;
        }
        while state.inodes.len() >= INODES_MAX {
            let Some(oldest) = state.order.pop_front() else { break };
            self.end(&mut state, &oldest);
        }
        state.inodes.insert(handle.clone(), vec![(client, place.clone())]);
        state.order.push_back(handle.clone());
        if state.order.len() > 2 * INODES_MAX {
            let State { inodes, order, .. } = &mut *state;
            order.retain(|handle| inodes.contains_key(handle));
        }
        true
    }

    /// Whether anybody could have to be waited for.
    pub fn is_idle(&self) -> bool {
        !self.busy.load(Ordering::SeqCst)
    }

    /// Hears what has changed, and ends its grants.
    pub fn hear(&self) {
        let Some(watcher) = &self.watcher else { return };
        let mut state = self.state();
        match watcher.drain() {
            Ok(heard) => heard.iter().for_each(|heard| match heard {
                Heard::Changed(handle) => self.end(&mut state, handle),
                Heard::Lost => self.end_all(&mut state),
            }),
            Err(error) => {
                tracing::error!(%error, "changes here cannot be heard");
                self.end_all(&mut state);
            }
        }
    }

    /// See the module's invariants.
    pub async fn settle(&self) {
        self.hear();
        let mut waits = Vec::new();
        for holder in self.state().holders.values() {
            if *holder.confirmed.borrow() < holder.issued {
                waits.push((holder.confirmed.subscribe(), holder.issued, holder.until));
            }
        }
        for (mut confirmed, issued, until) in waits {
            let confirming = confirmed.wait_for(|confirmed| *confirmed >= issued);
            // Whose lease is over shows nothing any more.
            let _ = tokio::time::timeout_at(until, confirming).await;
        }
    }

    /// Forgets leases that are over. To be called now and then.
    pub fn tidy(&self) {
        let mut state = self.state();
        let now = Instant::now();
        let over: Vec<_> = state.holders.iter().filter(|(_, holder)| holder.until <= now).collect();
        let over: Vec<_> = over.into_iter().map(|(client, _)| *client).collect();
        for client in over {
            self.lapse(&mut state, client);
        }
        let waiting = |holder: &Holder| *holder.confirmed.borrow() < holder.issued;
        let busy = !state.inodes.is_empty() || state.holders.values().any(waiting);
        // A grant sets it under the same lock.
        self.busy.store(busy, Ordering::SeqCst);
    }

    /// Waits until something has changed, and hears it: so that others learn of it although nothing leaves this
    /// node. Returns after [`LISTEN_MAX`] all the same. False: there is nothing to listen to.
    pub fn listen(&self) -> bool {
        let Some(watcher) = &self.watcher else { return false };
        let seconds = LISTEN_MAX.as_secs() as i64;
        let most = rustix::time::Timespec { tv_sec: seconds, tv_nsec: 0 };
        match rustix::event::poll(&mut [PollFd::new(watcher, PollFlags::IN)], Some(&most)) {
            Ok(0) | Err(Errno::INTR) => true,
            Ok(_) => {
                self.hear();
                true
            }
            Err(_) => false,
        }
    }

    /// What the client has to drop next. Ends with the client's lease.
    pub async fn next_order(&self, client: NodeId) -> Option<Order> {
        loop {
            let (work, until) = {
                let mut state = self.state();
                let holder = state.holders.get_mut(&client)?;
                if *holder.confirmed.borrow() < holder.issued {
                    let recalls = std::mem::take(&mut holder.queue);
                    return Some(Order { recalls, reaches: holder.issued, until: holder.until });
                }
                (holder.work.clone(), holder.until)
            };
            tokio::select! {
                () = work.notified() => {}
                () = tokio::time::sleep_until(until) => {
                    let mut state = self.state();
                    let holder = state.holders.get(&client)?;
                    if holder.until <= Instant::now() {
                        self.lapse(&mut state, client);
                        state.holders.remove(&client);
                        write_record(&self.record, state.holders.keys());
                        return None;
                    }
                }
            }
        }
    }

    /// The client shows nothing of what was recalled up to this number, or its lease is over.
    pub fn confirmed(&self, client: NodeId, reaches: u64) {
        if let Some(holder) = self.state().holders.get_mut(&client) {
            holder.confirmed.send_if_modified(|confirmed| {
                let more = *confirmed < reaches;
                *confirmed = reaches.max(*confirmed);
                more
            });
        }
    }

    /// The client did not confirm before its lease ended.
    pub fn outlived(&self, client: NodeId) {
        self.lapse(&mut self.state(), client);
    }

    fn end(&self, state: &mut State, handle: &FileHandle) {
        let Some(granted) = state.inodes.remove(handle) else { return };
        if let (Some(watcher), Some((_, place))) = (&self.watcher, granted.first())
            && let Some(fd) = (self.open)(place)
        {
            let _ = watcher.unmark(fd);
        }
        let now = Instant::now();
        for (client, place) in granted {
            if let Some(holder) = state.holders.get_mut(&client).filter(|held| held.until > now) {
                holder.recall(place);
            }
        }
    }

    fn end_all(&self, state: &mut State) {
        if let Some(watcher) = &self.watcher {
            let _ = watcher.unmark_all();
        }
        state.inodes.clear();
        state.order.clear();
        state.holders.values_mut().for_each(Holder::recall_all);
    }

    /// Ends a client's grants without a recall.
    fn lapse(&self, state: &mut State, client: NodeId) {
        let mut empty = Vec::new();
        for (handle, granted) in &mut state.inodes {
            let last = granted.first().map(|(_, place)| place.clone());
            granted.retain(|(holder, _)| *holder != client);
            if granted.is_empty() {
                empty.push((handle.clone(), last));
            }
        }
        if empty.len() == state.inodes.len() {
            state.inodes.clear();
            state.order.clear();
            empty.clear();
            if let Some(watcher) = &self.watcher {
                let _ = watcher.unmark_all();
            }
        }
        for (handle, place) in empty {
            state.inodes.remove(&handle);
            if let (Some(watcher), Some(place)) = (&self.watcher, place)
                && let Some(fd) = (self.open)(&place)
            {
                let _ = watcher.unmark(fd);
            }
        }
        if let Some(holder) = state.holders.get_mut(&client) {
            holder.until = Instant::now();
            holder.lease = 0;
            holder.queue = Recalls::default();
            let issued = holder.issued;
            holder.confirmed.send_replace(issued);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder {
    fn new(lease: u64, until: Instant) -> Self {
        let (queue, confirmed, work) =
            (Recalls::default(), watch::Sender::new(0), Arc::new(Notify::new()));
        Self { lease, until, queue, issued: 0, confirmed, work }
    }

    fn recall(&mut self, place: Place) {
        if self.queue.places.len() >= RECALLED_MAX {
            return self.recall_all();
        }
        self.queue.places.push(place);
        self.issued += 1;
        self.work.notify_one();
    }

    fn recall_all(&mut self) {
        self.queue = Recalls { places: Vec::new(), all: true };
        self.issued += 1;
        self.work.notify_one();
    }
}

/// Written before the first lease is given: a daemon that cannot, gives none that outlives it by much.
fn write_record<'a>(path: &Path, clients: impl Iterator<Item = &'a NodeId>) {
    let bytes: Vec<u8> = clients.flat_map(|client| client.0.to_le_bytes()).collect();
    if let Err(error) = std::fs::write(path, bytes) {
        tracing::error!(%error, "it is not recorded who keeps files of this machine");
    }
}

fn read_record(path: &Path) -> Vec<NodeId> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let (whole, _) = bytes.as_chunks();
    whole.iter().map(|client| NodeId(u64::from_le_bytes(*client))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    struct Fixture {
        grants: Grants,
        dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let at = dir.path().to_owned();
            let open = move |place: &Place| {
                let Place::Inode { handle, .. } = place else { return None };
                let paths = fs::read_dir(&at).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
                let mut files = paths.filter_map(|path| File::open(path).ok());
                files
                    .find(|file| FileHandle::of(file).ok().as_ref() == Some(handle))
                    .map(Into::into)
            };
            let record = tempfile::NamedTempFile::new().unwrap();
            let (grants, _) = Grants::new(record.path(), open);
            if grants.watcher.is_none() {
                println!("skipped: no fanotify here");
                return None;
            }
            Some(Self { grants, dir })
        }

        fn file(&self, name: &str) -> (Place, File) {
            let path = self.dir.path().join(name);
            fs::write(&path, "x").unwrap();
            let file = File::open(path).unwrap();
            (Place::Inode { mount: 1, handle: FileHandle::of(&file).unwrap() }, file)
        }

        fn change(&self, name: &str) {
            fs::write(self.dir.path().join(name), "y").unwrap();
        }
    }

    const A: NodeId = NodeId(2);
    const B: NodeId = NodeId(3);

    #[tokio::test(start_paused = true)]
    async fn who_keeps_it_is_told_and_waited_for() {
        let Some(home) = Fixture::new() else { return };
        let grants = &home.grants;
        let (a, b) = (grants.renew(A, 0).0, grants.renew(B, 0).0);
        let (place, file) = home.file("f");
        assert!(grants.is_idle());
        assert!(!grants.grant(A, a.lease + 1, &place, &file), "another lease");
        assert!(grants.grant(A, a.lease, &place, &file) && grants.grant(B, b.lease, &place, &file));
        assert!(!grants.is_idle());
        grants.settle().await;
        home.change("f");
        let settled = tokio::join!(
            async {
                grants.settle().await;
                Instant::now()
            },
            async {
                for client in [A, B] {
                    let order = grants.next_order(client).await.unwrap();
                    assert_eq!(order.recalls.places, std::slice::from_ref(&place));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    grants.confirmed(client, order.reaches);
                }
                Instant::now()
            }
        );
        assert!(settled.0 >= settled.1 || settled.1 - settled.0 < Duration::from_millis(1));
        // It is granted no more, and changes of it are not heard.
        home.change("f");
        grants.settle().await;
        grants.tidy();
        assert!(grants.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_earlier_daemon_granted_is_recalled_first() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("record");
        let (earlier, before) = Grants::new(&record, |_| None);
        assert_eq!(before, []);
        let lease = earlier.renew(A, 0).0.lease;
        drop(earlier);
        let (later, before) = Grants::new(&record, |_| None);
        assert_eq!(before, [A]);
        assert!(!later.is_idle());
        for asked in [lease, 0] {
            assert_eq!(later.renew(A, asked).0.lease, 0, "the recall comes first");
        }
        let order = later.next_order(A).await.unwrap();
        assert!(order.recalls.all);
        let settled = tokio::join!(later.settle(), async { later.confirmed(A, order.reaches) });
        assert_eq!(settled, ((), ()));
        assert_ne!(later.renew(A, lease).0.lease, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_waited_for_until_its_lease_ends_and_has_nothing_then() {
        let Some(home) = Fixture::new() else { return };
        let grants = &home.grants;
        let lease = grants.renew(A, 0).0.lease;
        let ((f, f_file), (g, g_file)) = (home.file("f"), home.file("g"));
        assert!(grants.grant(A, lease, &f, &f_file) && grants.grant(A, lease, &g, &g_file));
        tokio::time::sleep(TERM / 2).await;
        assert_eq!(grants.renew(A, lease).0, Lease { lease, term: TERM });
        home.change("f");
        grants.hear();
        let start = Instant::now();
        tokio::time::sleep(TERM / 2).await;
        // Asking does not help as long as the recall is not confirmed.
        assert!(grants.renew(A, lease).0.term <= TERM / 2);
        grants.settle().await;
        let waited = start.elapsed();
        assert!(waited >= TERM && waited <= TERM + 2 * SLACK, "{waited:?}");
        assert_ne!(grants.renew(A, lease).0.lease, lease);
        home.change("g");
        let start = Instant::now();
        grants.settle().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(!grants.grant(A, lease, &f, &f_file));
    }
}
