//! What the kernel may cache of the tree, and taking it back when others change it.
//!
//! While this node holds a read lease, the kernel keeps names, attributes and pages without a
//! time-out. Each change by another node is taken back from its caches before this node confirms it to
//! the leader, so a change that is acknowledged anywhere is shown here. Before the lease can end, all is
//! taken back.
//!
//! What the kernel is told and when, so that no answer on its way can bring back what was just dropped:
//! - *Names* are trusted from LOOKUP and from what makes them, and a rename takes the trust along. The kernel
//!   expires a name under its directory's lock, which a first lookup and a making hold. A lookup that only
//!   renews a name holds no lock, so a name that was answered a moment ago is expired a second time, a
//!   little later. A directory that others change is left alone for a while: two nodes at work in it would
//!   only take names from each other.
//! - *Attributes* are trusted from GETATTR, where the kernel has the inode already: an answer that is older than
//!   an invalidation is then ignored by it. They are trusted from the answers that bring an inode, too;
//!   but before it has it the kernel ignores the invalidation. So shortly after such an answer the name is
//!   expired first, which waits for the call, and then the inode. Other answers carry attributes for that
//!   one use. Access control lists are cached and dropped with them.
//! - *Pages* (of a directory: its listing) are kept from one open to the next if the content is the same. The
//!   content's time tells, not mtime, which programs set back.
//!
//! A change by a program of this node is known to the kernel already. Expiring names and dropping pages waits
//! for calls in flight on the same directory or page, and such a call may itself wait for another node
//! that waits for this one. So the wait is bounded by [`RECALL_PATIENCE`]. Pages that stay for that reason are
//! not shown: attributes are not trusted meanwhile, so that each read asks first. A name that stays can be
//! shown until the call in flight is over. It takes two nodes that begin to change one directory at
//! the same moment, after both had been at rest and had looked the name up.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use unum_core::time::Time;
use unum_core::tree::{Change, Tree, What, in_one_snapshot, is_past};
use unum_proto::ids::{Ino, NodeId};
use unum_proto::tree::Attributes;
use unum_sys::fuse::{Discard, Ino as Nodeid, Ledger, Notifier, Trusted};

use crate::beats;
use crate::registry::{Changed, Registry};

/// Longer than any mount lives.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How often the lease is looked at.
const LOOK: Duration = Duration::from_millis(128);
/// All is taken back when the lease ends sooner than this, and before unum-init does it: there must be time
/// for it and for a late look.
const LAPSE_MARGIN: Duration = Duration::from_millis(416);
/// How long a change by others waits for calls of this node's kernel that are in flight.
const RECALL_PATIENCE: Duration = Duration::from_millis(20);
/// The same, when the daemon goes: the next one takes back what is left.
const RETIRE_PATIENCE: Duration = Duration::from_millis(500);
/// A name that was answered since then may be in the kernel's hands still.
const ANSWER_TRAVEL_MAX: Duration = Duration::from_secs(2);
/// When a name in the kernel's hands is expired once more.
const SECOND_LOOK: Duration = Duration::from_millis(5);
/// How long a directory that another node changed is not trusted; doubled up to the second while it
/// is changed again.
const RESTLESS_MIN: Duration = Duration::from_secs(1);
const RESTLESS_MAX: Duration = Duration::from_secs(8);
/// Directories that are watched so.
const RESTLESS_DIRECTORIES_MAX: usize = 1 << 16;
/// How long an inode that is written here and elsewhere at once counts as such.
const CONTENDED_TIME: Duration = Duration::from_secs(2);
/// Inodes that are watched so.
const CONTENDED_MAX: usize = 1 << 12;
/// Names and inodes that the kernel is trusted with, one after the other; then all is taken back.
const TRUSTED_MAX: usize = 1 << 20;
/// Recalls that wait for the thread.
const RECALLS_MAX: usize = 256;

/// Who may be trusted with what is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    Kernel,
    Nobody,
}

/// What may have to wait for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Recall {
    Name(Ino, Arc<[u8]>),
    Attributes(Ino),
    Pages(Ino),
}

/// What the kernel knows of an inode.
#[derive(Clone, Debug)]
struct Known {
    attributes: bool,
    /// Its pages, if it has any, are of this content; `Time::ZERO`: of whatever content.
    content: Time,
    /// The answer that brought it last.
    brought: Option<Brought>,
}

/// An answer that told the kernel of an inode by a name.
#[derive(Clone, Debug)]
struct Brought {
    parent: Ino,
    name: Arc<[u8]>,
    at: Instant,
}

impl Brought {
    /// The kernel may not have the inode yet.
    fn is_on_its_way(&self, now: Instant) -> bool {
        now.duration_since(self.at) < ANSWER_TRAVEL_MAX
    }
}

/// The kernel's trust in a name, from before that is made. See [`Caches::promise`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise(Instant);

#[derive(Clone, Copy, Debug)]
struct Restless {
    until: Instant,
    pause: Duration,
}

struct State {
    /// A lease is held, and not about to end.
    trusting: bool,
    /// Until then others leave the kernel's caches alone.
    until: Instant,
    /// Nobody will keep the caches true.
    retired: bool,
    ledger: Ledger,
    /// By directory and name, with the time of the last answer.
    names: HashMap<Ino, HashMap<Arc<[u8]>, Instant>>,
    inodes: HashMap<Ino, Known>,
    restless: HashMap<Ino, Restless>,
    /// Inodes whose pages calls in flight kept from being taken back, and until when it is not tried
    /// again: their attributes are not trusted, so that each read asks whether its pages are good.
    contended: HashMap<Ino, Instant>,
    /// Records of the ledger.
    entered: usize,
    /// Recalls of everything that are under way.
    recalling: u32,
}

pub(super) struct Caches {
    node: NodeId,
    registry: Registry,
    notifier: Notifier,
    /// The kernel can drop all names at once if this daemon dies.
    trusts_names: bool,
    /// Never held across an await, nor while the kernel is told anything that may wait.
    state: Mutex<State>,
    recalls: mpsc::SyncSender<Batch>,
}

/// What one entry of the log takes back, and who waits for it.
struct Batch {
    recalls: Vec<Recall>,
    done: oneshot::Sender<()>,
}

impl Caches {
    /// `trusts_names`: the kernel can drop all names at once. `ledger`: where it is written down what the
    /// kernel is trusted with.
    pub fn new(
        node: NodeId,
        registry: Registry,
        notifier: Notifier,
        trusts_names: bool,
        ledger: &Path,
    ) -> std::io::Result<Arc<Self>> {
        let (recalls, queue) = mpsc::sync_channel(RECALLS_MAX);
        let state = State {
            trusting: false,
            until: Instant::now(),
            retired: false,
            ledger: Ledger::open(ledger)?,
            names: HashMap::new(),
            inodes: HashMap::new(),
            restless: HashMap::new(),
            contended: HashMap::new(),
            entered: 0,
            recalling: 0,
        };
        let teller = notifier.clone();
        // It ends with the queue; it may wait in the kernel for long, so nobody joins it.
        std::thread::Builder::new()
            .name("recalls".into())
            .spawn(move || recall_in_order(&queue, &teller))?;
        Ok(Arc::new(Self {
            node,
            registry,
            notifier,
            trusts_names,
            state: Mutex::new(state),
            recalls,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What an answer may say. To be asked while the tree is looked at, so that a later change finds
    // what was trusted.

    /// How long the kernel may keep what a name leads to, or that it leads nowhere; and the attributes of
    /// what it leads to.
    pub fn trust_name(
        &self,
        trust: Trust,
        parent: Ino,
        name: &[u8],
        found: Option<Ino>,
    ) -> (Duration, Duration) {
        const NOT: Duration = Duration::ZERO;
        if trust == Trust::Nobody || !self.trusts_names {
            return (NOT, NOT);
        }
        let now = Instant::now();
        let mut state = self.state();
        if !state.take_on(parent, name, now) {
            return (NOT, NOT);
        }
        match found {
            Some(ino) if state.bring(ino, parent, name, now) => (FOREVER, FOREVER),
            _ => (FOREVER, NOT),
        }
    }

    /// A name is about to be made, and the kernel to be trusted with it. None: it is not.
    pub fn promise(&self, parent: Ino, name: &[u8]) -> Option<Promise> {
        let now = Instant::now();
        let taken_on = self.trusts_names && self.state().take_on(parent, name, now);
        taken_on.then_some(Promise(now))
    }

    /// How long the kernel may keep a name that was made since the promise, and the attributes of the inode
    /// that was made with it. What others changed since has taken the promise back, or will find the name
    /// when this call has given its directory free.
    pub fn keep_promise(
        &self,
        promise: Promise,
        tree: &Tree,
        (parent, name): (Ino, &[u8]),
        made: &Attributes,
    ) -> (Duration, Duration) {
        let now = Instant::now();
        let mut state = self.state();
        if state.answered(parent, name) != Some(promise.0) || !state.is_trusting(now) {
            return (Duration::ZERO, Duration::ZERO);
        }
        let ino = Ino(made.ino);
        let current = tree.inode(ino).is_ok_and(|inode| inode.version == made.version);
        match current && state.bring(ino, parent, name, now) {
            true => (FOREVER, FOREVER),
            false => (FOREVER, Duration::ZERO),
        }
    }

    /// A rename takes the kernel's trust in the old name along to the new one. To be told before the
    /// kernel is answered.
    pub fn follow_name(&self, from: (Ino, &[u8]), to: (Ino, &[u8])) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(answered) = state.answered(from.0, from.1) else { return };
        if let Err(error) = state.ledger.append(Trusted::Name(Nodeid(to.0.0), to.1)) {
            tracing::warn!(%error, "the list of what the kernel caches cannot be written");
        }
        state.entered += 1;
        state.answer(to.0, to.1, answered);
    }

    /// When the kernel was last trusted with a name.
    pub fn answered(&self, parent: Ino, name: &[u8]) -> Option<Instant> {
        self.state().answered(parent, name)
    }

    /// A call of the kernel has changed what a name leads to, so what it was told of it before, at
    /// `answered`, it does not trust any more.
    pub fn forget_name(&self, parent: Ino, name: &[u8], answered: Option<Instant>) {
        let mut state = self.state();
        if answered.is_some() && state.answered(parent, name) == answered {
            state.forget(parent, name);
        }
    }

    /// How long the kernel may keep an inode's attributes that it asked for by themselves.
    pub fn trust_attributes(&self, trust: Trust, tree: &Tree, ino: Ino) -> Duration {
        if trust == Trust::Nobody {
            return Duration::ZERO;
        }
        if tree.inode(ino).is_err() {
            return Duration::ZERO;
        }
        let mut state = self.state();
        let state = &mut *state;
        let now = Instant::now();
        let trusted = state.inodes.get(&ino).is_some_and(|known| known.attributes);
        if state.contended.get(&ino).is_some_and(|until| now < *until)
            || !state.is_trusting(now)
            || !trusted && !state.enter(Trusted::Attributes(Nodeid(ino.0)))
        {
            return Duration::ZERO;
        }
        // Where its pages come from, if it has any, is not known.
        let unknown = Known { attributes: true, content: Time::ZERO, brought: None };
        state.inodes.entry(ino).or_insert(unknown).attributes = true;
        FOREVER
    }

    /// The kernel drops the attributes of an inode, and access control lists with them.
    pub fn drop_attributes(&self, ino: Ino) {
        // It does not wait, and a mount that is gone has no caches.
        let _ = self.notifier.inval_inode(Nodeid(ino.0), -1, 0);
    }

    /// Whether a file that is being opened still has the content whose pages the kernel may have. If
    /// not, the kernel drops them, and those it gets from now on are of this content.
    pub fn keep_pages(&self, trust: Trust, tree: &Tree, ino: Ino) -> bool {
        if trust == Trust::Nobody {
            return false;
        }
        let Ok(content) = tree.inode(ino).map(|inode| inode.content_time) else { return false };
        let mut state = self.state();
        if !state.is_trusting(Instant::now()) {
            return false;
        }
        let full = state.inodes.len() >= TRUSTED_MAX;
        match state.inodes.get_mut(&ino) {
            Some(known) => std::mem::replace(&mut known.content, content) == content,
            None if full => false,
            None => {
                state.inodes.insert(ino, Known { attributes: false, content, brought: None });
                false
            }
        }
    }

    // Taking back.

    /// Keeps the kernel's caches true. Ends when the caller drops it.
    pub async fn keep_true(self: Arc<Self>) {
        // What an earlier daemon had trusted the kernel with.
        self.recall_all().await;
        let feed = self.registry.feed();
        let looking = async {
            loop {
                self.look_at_lease().await;
                beats::beat(LOOK).await;
            }
        };
        let following = async {
            loop {
                let changed = feed.next().await;
                let index = changed.index;
                self.drop_changed(changed).await;
                feed.dropped(index);
            }
        };
        tokio::join!(looking, following);
    }

    async fn look_at_lease(&self) {
        let left = self.registry.lease_left();
        let safe = left.is_some_and(|left| left >= LAPSE_MARGIN);
        let (trusting, full) = {
            let state = self.state();
            (state.trusting, state.is_full())
        };
        if trusting && (!safe || full) {
            if !safe {
                tracing::debug!(
                    ?left,
                    "the read lease is about to end: the kernel's caches are emptied"
                );
            }
            self.recall_all().await;
        } else if let Some(left) = left.filter(|_| safe) {
            self.trust(left);
        }
    }

    fn trust(&self, left: Duration) {
        let mut state = self.state();
        // What is trusted while all is being taken back would be forgotten.
        let may = !state.retired && state.recalling == 0;
        state.trusting = may && state.ledger.extend(left).is_ok();
        state.until = Instant::now() + left;
    }

    /// Takes everything back and trusts nothing from now on.
    pub async fn retire(&self) {
        self.state().retired = true;
        match tokio::time::timeout(RETIRE_PATIENCE, self.recall_all()).await {
            Ok(()) => self.registry.resign_lease().await,
            Err(_) => tracing::debug!("calls in flight keep the kernel from dropping some names"),
        }
    }

    /// Takes everything back, and trusts nothing until told to.
    async fn recall_all(&self) {
        let (path, arriving) = {
            let mut state = self.state();
            state.trusting = false;
            state.recalling += 1;
            (state.ledger.path().to_owned(), state.arriving(Instant::now()))
        };
        // The kernel must have the inodes that it is to drop. A name that cannot be expired now waits for a call
        // that is not answered yet, and that is not trusted any more.
        for some in arriving.chunks(RECALLS_MAX) {
            self.recall(some.to_vec()).await;
        }
        let notifier = self.notifier.clone();
        let recalled = tokio::task::spawn_blocking(move || Ledger::recall(&path, &notifier)).await;
        match recalled {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "what the kernel caches cannot be read"),
            Err(error) => tracing::error!(%error, "the kernel's caches could not be emptied"),
        }
        let mut state = self.state();
        state.recalling -= 1;
        state.names.clear();
        state.inodes.clear();
        state.entered = 0;
        if let Err(error) = state.ledger.clear() {
            tracing::warn!(%error, "the list of what the kernel caches cannot be emptied");
        }
    }

    async fn drop_changed(&self, changed: Changed) {
        let fenced = Change { by: self.node, what: What::Fenced };
        if changed.all || changed.changes.contains(&fenced) {
            // The next look at the lease goes on from here.
            self.recall_all().await;
            return;
        }
        let (recalls, again) = self.registry.read(|state| self.plan(state.tree(), &changed));
        if recalls.is_empty() {
            return;
        }
        self.recall(recalls).await;
        if !again.is_empty() {
            tokio::time::sleep(SECOND_LOOK).await;
            self.recall(again).await;
        }
    }

    /// Drops attributes at once. What is left may have to wait; the second list is what has to be
    /// done once more after a moment.
    fn plan(&self, tree: &Tree, changed: &Changed) -> (Vec<Recall>, Vec<Recall>) {
        let (mut recalls, mut again) = (Vec::new(), Vec::new());
        let now = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        for change in &changed.changes {
            let own = change.by == self.node;
            match &change.what {
                // What the kernel knows by names is found to be gone when it asks for them again.
                What::Inode(ino) if is_past(*ino) && tree.inode(*ino).is_err() => {
                    self.drop_snapshot(*ino, state);
                }
                What::Inode(ino) => {
                    let Some(known) = state.inodes.get_mut(ino) else { continue };
                    let content = tree.inode(*ino).map_or(Time::ZERO, |inode| inode.content_time);
                    if own {
                        // The tree may be ahead of this change, so it does not tell the content.
                        known.content = Time::ZERO;
                        continue;
                    }
                    let other = std::mem::replace(&mut known.content, content) != content;
                    self.take_back_attributes(*ino, known, now, &mut recalls);
                    if other && state.contended.get(ino).is_some_and(|until| now < *until) {
                        // The next open has them dropped.
                        state.inodes.remove(ino);
                    } else if other {
                        recalls.push(Recall::Pages(*ino));
                    }
                }
                What::Name(..) | What::Covered(_) if own => {}
                What::Fenced => {}
                What::Covered(ino) => {
                    for (name, answered) in state.names.remove(ino).unwrap_or_default() {
                        let recall = Recall::Name(*ino, name);
                        if now.duration_since(answered) < ANSWER_TRAVEL_MAX {
                            again.push(recall.clone());
                        }
                        recalls.push(recall);
                    }
                    if let Some(mut known) = state.inodes.remove(ino) {
                        self.take_back_attributes(*ino, &mut known, now, &mut recalls);
                        recalls.push(Recall::Pages(*ino));
                    }
                }
                What::Name(parent, name) => {
                    state.disturb(*parent, now);
                    if let Some(answered) = state.forget(*parent, name) {
                        let recall = Recall::Name(*parent, name.clone());
                        if now.duration_since(answered) < ANSWER_TRAVEL_MAX {
                            again.push(recall.clone());
                        }
                        recalls.push(recall);
                    }
                }
            }
        }
        (recalls, again)
    }

    /// A snapshot is gone, and all its inodes with its root.
    fn drop_snapshot(&self, root: Ino, state: &mut State) {
        for ino in state.inodes.keys().filter(|ino| in_one_snapshot(**ino, root)) {
            self.drop_attributes(*ino);
        }
        state.inodes.retain(|ino, _| !in_one_snapshot(*ino, root));
        state.names.retain(|parent, _| !in_one_snapshot(*parent, root));
    }

    fn take_back_attributes(
        &self,
        ino: Ino,
        known: &mut Known,
        now: Instant,
        recalls: &mut Vec<Recall>,
    ) {
        if std::mem::take(&mut known.attributes) {
            self.drop_attributes(ino);
            let brought = known.brought.take();
            recalls.extend(brought.iter().flat_map(|brought| recalls_of(ino, brought, now)));
        }
    }

    async fn recall(&self, recalls: Vec<Recall>) {
        let (done, finished) = oneshot::channel();
        let pages = recalls.iter().filter_map(|recall| match recall {
            Recall::Pages(ino) => Some(*ino),
            Recall::Name(..) | Recall::Attributes(_) => None,
        });
        let pages: Vec<Ino> = pages.collect();
        if self.recalls.try_send(Batch { recalls, done }).is_err()
            || tokio::time::timeout(RECALL_PATIENCE, finished).await.is_err()
        {
            tracing::debug!("a call in flight is in the way of what others changed");
            self.contend(pages);
        }
    }

    /// These inodes are read and written here while others write them.
    fn contend(&self, inodes: Vec<Ino>) {
        let now = Instant::now();
        let mut state = self.state();
        if state.contended.len() + inodes.len() > CONTENDED_MAX {
            state.contended.retain(|_, until| now < *until);
        }
        for ino in &inodes {
            state.inodes.remove(ino);
        }
        let room = CONTENDED_MAX.saturating_sub(state.contended.len());
        state
            .contended
            .extend(inodes.into_iter().take(room).map(|ino| (ino, now + CONTENDED_TIME)));
    }
}

impl State {
    fn is_trusting(&self, now: Instant) -> bool {
        self.trusting && now + LAPSE_MARGIN <= self.until
    }

    fn is_full(&self) -> bool {
        self.entered >= TRUSTED_MAX
    }

    /// When the kernel was last told of a name.
    fn answered(&self, parent: Ino, name: &[u8]) -> Option<Instant> {
        self.names.get(&parent)?.get(name).copied()
    }

    fn answer(&mut self, parent: Ino, name: &[u8], at: Instant) {
        let names = self.names.entry(parent).or_default();
        match names.get_mut(name) {
            Some(answered) => *answered = at,
            None => {
                names.insert(name.into(), at);
            }
        }
    }

    fn forget(&mut self, parent: Ino, name: &[u8]) -> Option<Instant> {
        let names = self.names.get_mut(&parent)?;
        let answered = names.remove(name);
        if names.is_empty() {
            self.names.remove(&parent);
        }
        answered
    }

    /// The kernel will be trusted with a name. False: it is not to be.
    fn take_on(&mut self, parent: Ino, name: &[u8], now: Instant) -> bool {
        let restless = self.restless.get(&parent).is_some_and(|restless| now < restless.until);
        if restless || !self.is_trusting(now) {
            return false;
        }
        if self.answered(parent, name).is_none()
            && !self.enter(Trusted::Name(Nodeid(parent.0), name))
        {
            return false;
        }
        self.answer(parent, name, now);
        true
    }

    /// The kernel will be trusted with the attributes of an inode that comes with a name. False: it is not to
    /// be.
    fn bring(&mut self, ino: Ino, parent: Ino, name: &[u8], now: Instant) -> bool {
        let Some((name, _)) = self.names.get(&parent).and_then(|names| names.get_key_value(name))
        else {
            return false;
        };
        let name = name.clone();
        let known = self.inodes.get(&ino);
        // It can be taken back by one name only.
        let by_another = known.and_then(|known| known.brought.as_ref()).is_some_and(|brought| {
            brought.is_on_its_way(now) && (brought.parent, &brought.name) != (parent, &name)
        });
        let trusted = known.is_some_and(|known| known.attributes);
        if by_another
            || self.contended.get(&ino).is_some_and(|until| now < *until)
            || !trusted && !self.enter(Trusted::Attributes(Nodeid(ino.0)))
        {
            return false;
        }
        let unknown = Known { attributes: true, content: Time::ZERO, brought: None };
        let known = self.inodes.entry(ino).or_insert(unknown);
        known.attributes = true;
        known.brought = Some(Brought { parent, name, at: now });
        true
    }

    /// One name in each directory in which answers may be on their way that bring inodes: when it is expired,
    /// they have arrived.
    fn arriving(&self, now: Instant) -> Vec<Recall> {
        let brought = self.inodes.values().filter_map(|known| known.brought.as_ref());
        let names: HashMap<Ino, &Arc<[u8]>> = brought
            .filter(|brought| brought.is_on_its_way(now))
            .map(|brought| (brought.parent, &brought.name))
            .collect();
        names.into_iter().map(|(parent, name)| Recall::Name(parent, name.clone())).collect()
    }

    /// Writes down what the kernel will be trusted with. False: it is not to be trusted.
    fn enter(&mut self, trusted: Trusted<'_>) -> bool {
        if self.is_full() || self.ledger.append(trusted).is_err() {
            return false;
        }
        self.entered += 1;
        true
    }

    /// Another node changed a name in this directory.
    fn disturb(&mut self, directory: Ino, now: Instant) {
        if self.restless.len() >= RESTLESS_DIRECTORIES_MAX {
            self.restless.retain(|_, restless| now < restless.until);
        }
        let full = self.restless.len() >= RESTLESS_DIRECTORIES_MAX;
        match self.restless.get_mut(&directory) {
            // In the first half of its pause.
            Some(restless) if now + restless.pause / 2 < restless.until => {}
            Some(restless) => {
                let pause = match now < restless.until {
                    true => (restless.pause * 2).min(RESTLESS_MAX),
                    false => RESTLESS_MIN,
                };
                *restless = Restless { until: now + pause, pause };
            }
            // Its names are trusted and taken back one by one.
            None if full => {}
            None => {
                let restless = Restless { until: now + RESTLESS_MIN, pause: RESTLESS_MIN };
                self.restless.insert(directory, restless);
            }
        }
    }
}

/// What has to be done for attributes that the kernel may be about to learn.
fn recalls_of(ino: Ino, brought: &Brought, now: Instant) -> Vec<Recall> {
    match brought.is_on_its_way(now) {
        true => vec![Recall::Name(brought.parent, brought.name.clone()), Recall::Attributes(ino)],
        false => Vec::new(),
    }
}

fn recall_in_order(queue: &mpsc::Receiver<Batch>, notifier: &Notifier) {
    while let Ok(batch) = queue.recv() {
        for recall in batch.recalls {
            // What the kernel does not have needs no taking back; a mount that is gone has nothing.
            let _ = match recall {
                Recall::Name(parent, name) => {
                    notifier.inval_entry(Nodeid(parent.0), &name, Discard::Expire)
                }
                Recall::Attributes(ino) => notifier.inval_inode(Nodeid(ino.0), -1, 0),
                Recall::Pages(ino) => notifier.inval_inode(Nodeid(ino.0), 0, 0),
            };
        }
        // Whoever waited may have lost patience.
        let _ = batch.done.send(());
    }
}
