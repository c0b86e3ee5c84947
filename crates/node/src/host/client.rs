//! The kernel's calls on `/n`, passed on to the home of what they are about.
//!
//! What the home grants is kept (see `memory`) and answered without asking it; whatever else has no time to live, and
//! its files are opened past the page cache. Names are never given to the kernel to keep: nothing could take one
//! back for certain while a call that renews it is on its way. So each walk of a path comes here.
//!
//! A home that is away makes a call wait for `file_patience`, or until it is known to be dead, and then fail
//! with EHOSTDOWN. A signal ends the wait of a call that only reads at once; one that changes something
//! is given a short grace first, because its outcome is not known once it is given up.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::time::Instant;
use unum_net::{
    CallOptions, Caller, Client, Code, Incoming, Method, Name, Router, RpcError, Status,
};
use unum_proto::host as wire;
use unum_proto::host::{change, look};
use unum_proto::ids::{Lane, NodeId};
use unum_sys::fuse::{
    Added, Attr, AttrFlags, Capabilities, Delivery, DirectoryBuffer, Entry, Fh, Header, Ino,
    MountFlags, MountOptions, Notifier, OpenFlags, Opened, Operation, Request, Responder, SetAttr,
    SetTime, StatFs, Statx, Timestamp, Wishes,
};

use super::memory::{Known, Memory, Opener, TTL_MAX, Ticket};
use super::table::{OWN_LINK, OpenFile, ROOT, Table, Target};
use super::{Append, Change, Look, Read, Recall, Release, Renew, Sync, Write};
use crate::membership::{MemberState, Membership};
use crate::registry::Registry;
use crate::signals::Signal;

/// How long a change may go on after its caller got a signal.
const INTERRUPT_GRACE: Duration = Duration::from_secs(2);
/// For so long the kernel may remember what no home has a say in: the root, and the own node's link.
const OWN_TTL: Duration = Duration::from_secs(1);
/// For so long it may remember what a home says.
const HOME_TTL: Duration = Duration::ZERO;
/// How long telling a home of closed files may take.
const RELEASE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a recall waits for reads in flight.
const RECALL_PATIENCE: Duration = Duration::from_millis(50);
/// How often a lease is prolonged, and how long that may take.
const RENEW_PAUSE: Duration = Duration::from_millis(512);
const RENEW_TIME_MAX: Duration = Duration::from_millis(1536);
/// The most of /proc/PID/status that is read.
const STATUS_SIZE_MAX: u64 = 1 << 20;
/// Every field of statx(2) that is filled here: STATX_BASIC_STATS and STATX_BTIME.
const STATX_FILLED: u32 = 0x0fff;

/// The kernel's mark of an open for execution (`__FMODE_EXEC`).
const OPEN_FOR_EXEC: u32 = 0x20;
/// Extended attributes that everybody may see who may see the file: access control lists, labels, capabilities.
const SHOWN_TO_ALL: [&[u8]; 2] = [b"system.", b"security."];

/// What the trees are made of.
pub struct Parts {
    pub node: NodeId,
    pub registry: Registry,
    pub membership: Membership,
    pub client: Client,
    /// Of the FUSE connection: lives as long as the mount.
    pub lane: Lane,
    /// How long a call waits for its home.
    pub patience: Duration,
    /// Of the FUSE connection.
    pub notifier: Notifier,
}

/// The trees of the other nodes, for this node's kernel.
pub struct HostTrees {
    parts: Parts,
    /// Protects what the kernel knows by number, and its journal. Never held across an await.
    table: Mutex<Table>,
    memory: Memory,
    mounted: Timestamp,
    /// From then on the kernel trusts nothing on the word of an earlier daemon.
    alone: Instant,
}

/// What the daemon wants of the kernel for `/n`.
pub fn wishes() -> Wishes {
    let wishes = Wishes::default();
    let locks = Capabilities::POSIX_LOCKS | Capabilities::FLOCK_LOCKS;
    let capabilities = wishes.capabilities.without(locks)
        | Capabilities::AUTO_INVAL_DATA
        | Capabilities::HANDLE_KILLPRIV_V2
        | Capabilities::DIRECT_IO_ALLOW_MMAP
        | Capabilities::DONT_MASK
        | Capabilities::POSIX_ACL;
    Wishes { capabilities, ..wishes }
}

/// Neither devices nor setuid bits of another machine count here.
pub fn mount_options() -> MountOptions {
    MountOptions {
        source: "unum-host".into(),
        flags: MountFlags::NOSUID | MountFlags::NODEV,
        ..MountOptions::default()
    }
}

impl HostTrees {
    /// `journal` is where a daemon's death does not reach, but a machine's does. `fresh`: the mount is new.
    pub fn new(parts: Parts, journal: &Path, fresh: bool) -> std::io::Result<Arc<Self>> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let secs = now.map_or(0, |now| now.as_secs() as i64);
        let table = Mutex::new(Table::restore(journal, fresh)?);
        let mounted = Timestamp { secs, nanos: 0 };
        let inherits = if fresh { Duration::ZERO } else { TTL_MAX };
        let alone = Instant::now() + inherits;
        Ok(Arc::new(Self { parts, table, memory: Memory::default(), mounted, alone }))
    }

    /// What homes call.
    pub fn routes(self: &Arc<Self>) -> Router {
        let trees = self.clone();
        Router::new().call::<Recall>(move |incoming: Incoming, request| {
            let trees = trees.clone();
            async move { trees.recall(incoming, request).await }
        })
    }

    async fn recall(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::Recall,
    ) -> Result<wire::Nothing, Status> {
        let denied = || Status::denied("only nodes of the cluster may ask this");
        let home = incoming.caller.node.ok_or_else(denied)?;
        tokio::time::sleep_until(self.alone).await;
        self.memory.recall(home, &request.handles, request.all);
        let numbers = match request.all {
            true => self.table().numbers(|node| node == home),
            false => {
                let table = self.table();
                let handles = request.handles.into_iter();
                let targets = handles.map(|handle| Target { node: home, handle });
                targets.filter_map(|target| table.number(&target)).collect()
            }
        };
        let trees = self.clone();
        let dropping = tokio::task::spawn_blocking(move || {
            trees.distrust(&numbers);
            numbers
        });
        let numbers = dropping.await.map_err(|_| Status::internal("a recall was lost"))?;
        // Dropping pages waits for reads in flight, and these may wait for whoever waits for this answer. What stays
        // for that reason is not shown: each read asks for the attributes first. But an answer to that which crosses
        // the dropping is ignored by the kernel, so it is waited for as long as it makes sense.
        let trees = self.clone();
        let dropping = tokio::task::spawn_blocking(move || trees.drop_pages(&numbers));
        let _ = tokio::time::timeout(RECALL_PATIENCE, dropping).await;
        self.give_back();
        Ok(wire::Nothing {})
    }

    /// Has the kernel ask for attributes anew. Waits for nobody. It ignores answers to what it has asked already, and
    /// then shows the pages that it has: so this is for before a recall is confirmed, and for nothing else.
    fn distrust(&self, numbers: &[u64]) {
        for number in numbers {
            // What the kernel does not know it does not trust either.
            let _ = self.parts.notifier.inval_inode(Ino(*number), -1, 0);
        }
    }

    fn drop_pages(&self, numbers: &[u64]) {
        for number in numbers {
            let _ = self.parts.notifier.inval_inode(Ino(*number), 0, 0);
        }
    }

    /// Prolongs the lease of a home for as long as somebody uses it.
    async fn keep_lease(self: Arc<Self>, home: NodeId) {
        // A new lease ends what the home granted to an earlier daemon.
        tokio::time::sleep_until(self.alone).await;
        while let Some(lease) = self.memory.to_renew(home) {
            let asked = Instant::now();
            let options = CallOptions::until(asked + RENEW_TIME_MAX);
            let request = wire::Renew { lease };
            let client = &self.parts.client;
            if let Ok(reply) = client.call::<Renew>(&Name::Node(home), request, &options).await {
                self.memory.renewed(home, asked, &reply);
            }
            self.give_back();
            tokio::time::sleep_until(asked + RENEW_PAUSE).await;
        }
        self.give_back();
    }

    /// Tells homes which warrants are not needed any more.
    fn give_back(&self) {
        let mut by_home: HashMap<NodeId, Vec<Bytes>> = HashMap::new();
        for (home, warrant) in self.memory.take_released() {
            by_home.entry(home).or_default().push(warrant);
        }
        for (home, warrants) in by_home {
            let client = self.parts.client.clone();
            drop(tokio::spawn(async move {
                let options = CallOptions::within(RELEASE_TIME_MAX).fail_fast();
                // A home that is not told closes the file when it takes this node for dead, or needs the room.
                let request = wire::Release { warrants };
                let _ = client.call::<Release>(&Name::Node(home), request, &options).await;
            }));
        }
    }

    /// Answers one request of the kernel.
    pub async fn answer(self: Arc<Self>, request: Request) {
        let Request { header, operation, responder } = request;
        let deadline = Instant::now() + self.parts.patience;
        let call = Call { trees: &self, header, deadline };
        call.dispatch(operation, responder).await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the home's answer no longer than it may be alive.
    async fn ask<M: Method>(
        &self,
        home: NodeId,
        request: M::Request,
        options: &CallOptions,
    ) -> Result<M::Reply, Errno> {
        let to = Name::Node(home);
        let dead = async {
            let mut view = self.parts.membership.watch();
            loop {
                if self.is_dead(home) {
                    return;
                }
                if view.changed().await.is_err() {
                    std::future::pending().await
                }
            }
        };
        tokio::select! {
            biased;
            () = dead => Err(Errno::HOSTDOWN),
            reply = self.parts.client.call::<M>(&to, request, options) => {
                reply.map_err(|error| self.failure(home, &error))
            }
        }
    }

    fn is_dead(&self, home: NodeId) -> bool {
        let view = self.parts.membership.view();
        let state = view.get(&home).map(|member| member.state);
        let member = self
            .parts
            .registry
            .read(|state| state.nodes().get(home).is_some_and(|node| node.is_member()));
        !member || state == Some(MemberState::Down)
    }

    fn failure(&self, home: NodeId, error: &RpcError) -> Errno {
        let errno = match error {
            RpcError::DeadlineExceeded => Errno::TIMEDOUT,
            RpcError::Unreachable { .. } => Errno::HOSTDOWN,
            RpcError::Denied(_) => Errno::ACCESS,
            RpcError::Overloaded(_) => Errno::BUSY,
            RpcError::Status(status) if status.code == Code::UnknownMethod => Errno::OPNOTSUPP,
            _ => Errno::IO,
        };
        tracing::warn!(%home, %error, "a call on a host tree failed");
        errno
    }

    /// The cluster's nodes by name.
    fn nodes(&self) -> Vec<(NodeId, String)> {
        self.parts.registry.read(|state| {
            let workers = state.nodes().members().filter(|node| node.is_worker());
            workers.map(|node| (node.id, node.name.clone())).collect()
        })
    }

    /// What stands for the mount's root and for a node's root while nobody asks the node.
    fn made_up(&self, ino: u64, kind: u32, size: u64) -> Attr {
        Attr {
            ino: Ino(ino),
            size,
            mode: kind,
            nlink: 2,
            atime: self.mounted,
            mtime: self.mounted,
            ctime: self.mounted,
            blksize: 4096,
            flags: AttrFlags::NONE,
            ..Attr::default()
        }
    }
}

/// One call of the kernel.
struct Call<'a> {
    trees: &'a Arc<HostTrees>,
    header: Header,
    deadline: Instant,
}

/// What a call is about.
enum About {
    Root,
    OwnLink,
    Home(Target),
}

/// A name that was found or made, on its way to the kernel. Unless the kernel takes it, it is forgotten.
struct Shown {
    entry: Entry,
    opened: Option<Opened>,
}

impl Call<'_> {
    #[rustfmt::skip]
    async fn dispatch(&self, operation: Operation, to: Responder) {
        use Operation as O;
        let signal = Signal::of(&to);
        let read = Duration::ZERO;
        let change = INTERRUPT_GRACE;
        match operation {
            O::Lookup { name } => self.show(to, signal.or(read, self.lookup(name)).await),
            O::Forget { nodes } => { self.forget(nodes); let _ = to.ok(); }
            O::Getattr { fh } => finish(to, signal.or(read, self.getattr(fh)).await, |to, (a, ttl)| to.attr(&a, ttl)),
            O::Statx { fh, .. } => finish(to, signal.or(read, self.statx(fh)).await, |to, s| to.statx(&s)),
            O::Setattr(set) => finish(to, signal.or(change, self.setattr(set)).await, |to, a| to.attr(&a, HOME_TTL)),
            O::Readlink => finish(to, signal.or(read, self.readlink()).await, |to, t| to.content(&t)),
            O::Symlink { name, target } => self.show(to, signal.or(change, self.symlink(name, target)).await),
            O::Mknod { name, mode, rdev, umask } => self.show(to, signal.or(change, self.make(change::Call::MakeNode(make(name, mode, umask, rdev, 0)))).await),
            O::Mkdir { name, mode, umask } => self.show(to, signal.or(change, self.make(change::Call::MakeDirectory(make(name, mode, umask, 0, 0)))).await),
            O::Create { name, flags, mode, umask, .. } => self.show(to, signal.or(change, self.make(change::Call::Create(make(name, mode, umask, 0, flags)))).await),
            O::Tmpfile { flags, mode, umask } => self.show(to, signal.or(change, self.make(change::Call::MakeUnnamed(make(Vec::new(), mode, umask, 0, flags)))).await),
            O::Link { ino, name } => self.show(to, signal.or(change, self.link(ino, name)).await),
            O::Unlink { name } => finish(to, signal.or(change, self.name_change(name, change::Call::Unlink)).await, |to, ()| to.ok()),
            O::Rmdir { name } => finish(to, signal.or(change, self.name_change(name, change::Call::RemoveDirectory)).await, |to, ()| to.ok()),
            O::Rename { name, new_parent, new_name, flags } => finish(to, signal.or(change, self.rename(name, new_parent, new_name, flags)).await, |to, ()| to.ok()),
            O::Open { flags, .. } => self.opened(to, signal.or(read, self.open(flags)).await),
            O::Opendir { flags } => self.opened(to, signal.or(read, self.open(flags | libc::O_DIRECTORY as u32)).await),
            O::Read { fh, offset, size, .. } => finish(to, signal.or(read, self.read(fh, offset, size)).await, |to, b| to.content(&b)),
            O::Write(write) => finish(to, signal.or(change, self.write(write)).await, |to, n| to.written(n)),
            O::Readdir { fh, offset, size } => finish(to, signal.or(read, self.readdir(fh, offset, size)).await, |to, d| to.directory(&d)),
            O::Statfs => finish(to, signal.or(read, self.statfs()).await, |to, s| to.statfs(&s)),
            O::Release(release) => { self.release(release.fh); let _ = to.ok(); }
            O::Releasedir { fh, .. } => { self.release(fh); let _ = to.ok(); }
            O::Fsync { fh, datasync } | O::Fsyncdir { fh, datasync } => finish(to, signal.or(change, self.fsync(fh, datasync)).await, |to, ()| to.ok()),
            O::Setxattr { name, value, flags, .. } => finish(to, signal.or(change, self.setxattr(name, value, flags)).await, |to, ()| to.ok()),
            O::Getxattr { name, size } => finish(to, signal.or(read, self.getxattr(name, size)).await, sized(size)),
            O::Listxattr { size } => finish(to, signal.or(read, self.listxattr(size)).await, sized(size)),
            O::Removexattr { name } => finish(to, signal.or(change, self.name_change(name, change::Call::RemoveXattr)).await, |to, ()| to.ok()),
            O::Fallocate { fh, offset, length, mode } => finish(to, signal.or(change, self.fallocate(fh, offset, length, mode)).await, |to, ()| to.ok()),
            O::Lseek { fh, offset, whence } => finish(to, signal.or(read, self.lseek(fh, offset, whence)).await, |to, at| to.position(at)),
            // A write is at its home before it returns.
            O::Flush { .. } | O::NotifyReply { .. } => drop(to.ok()),
            // The kernel does these itself, or copies through read and write. Locks it keeps on its own.
            O::Syncfs | O::Getlk(_) | O::Setlk { .. } | O::Readdirplus { .. } | O::Access { .. } | O::CopyFileRange(_)
            | O::Bmap { .. } | O::Ioctl { .. } | O::Poll { .. } => drop(to.error(Errno::NOSYS)),
            O::Interrupt { .. } | O::Init(_) | O::Destroy | O::Unknown { .. } => drop(to.error(Errno::NOSYS)),
        }
    }

    fn about(&self, ino: Ino) -> Result<About, Errno> {
        match ino.0 {
            ROOT => Ok(About::Root),
            OWN_LINK => Ok(About::OwnLink),
            number => {
                self.trees.table().target(number).cloned().map(About::Home).ok_or(Errno::STALE)
            }
        }
    }

    /// What a call is about that makes no sense on the root.
    fn target(&self, ino: Ino) -> Result<Target, Errno> {
        match self.about(ino)? {
            About::Home(target) => Ok(target),
            About::Root | About::OwnLink => Err(Errno::PERM),
        }
    }

    fn own_target(&self) -> Result<Target, Errno> {
        self.target(self.header.ino)
    }

    fn open_file(&self, fh: Fh) -> Result<OpenFile, Errno> {
        self.trees.table().opened(fh.0).cloned().ok_or(Errno::STALE)
    }

    /// With whose rights the home acts.
    fn options(&self) -> CallOptions {
        let Header { uid, gid, pid, .. } = self.header;
        let groups = if uid == 0 { Vec::new() } else { groups_of(pid) };
        let caller = Caller { node: None, uid, gid, groups };
        CallOptions::until(self.deadline).caller(caller)
    }

    /// An answer that is not kept.
    async fn look(&self, target: &Target, call: look::Call) -> Result<wire::Answer, Errno> {
        accepted(self.ask(target, call, Ticket::NONE).await?)
    }

    /// The home's answer, which may be a refusal and is to be kept if the ticket allows it.
    async fn ask(
        &self,
        target: &Target,
        call: look::Call,
        ticket: Ticket,
    ) -> Result<wire::Answer, Errno> {
        let request =
            wire::Look { handle: target.handle.clone(), call: Some(call), lease: ticket.lease };
        self.trees.ask::<Look>(target.node, request, &self.options()).await
    }

    /// To be taken before the question. The first one begins a lease.
    fn ticket(&self, target: &Target) -> Ticket {
        let (ticket, begins) = self.trees.memory.ticket(target, self.header.uid);
        if begins {
            drop(tokio::spawn(self.trees.clone().keep_lease(target.node)));
        }
        ticket
    }

    fn recollect<T>(
        &self,
        of: &Target,
        look: impl FnOnce(&Known, Duration) -> Option<T>,
    ) -> Option<T> {
        self.trees.memory.look(of, self.header.uid, look)
    }

    async fn change(&self, target: &Target, call: change::Call) -> Result<wire::Answer, Errno> {
        self.trees.memory.changed(target);
        let request = wire::Change {
            handle: target.handle.clone(),
            lane: self.trees.parts.lane.0,
            number: self.header.unique.0,
            call: Some(call),
        };
        accepted(self.trees.ask::<Change>(target.node, request, &self.options()).await?)
    }

    async fn lookup(&self, name: Vec<u8>) -> Result<Shown, Errno> {
        match self.about(self.header.ino)? {
            About::Root => self.lookup_node(&name),
            About::OwnLink => Err(Errno::NOTDIR),
            About::Home(target) => self.lookup_in(target, name.into()).await,
        }
    }

    async fn lookup_in(&self, dir: Target, name: Bytes) -> Result<Shown, Errno> {
        let memory = &self.trees.memory;
        match self.recollect(&dir, |known, _| known.name(&name)) {
            Some(None) => return Err(Errno::NOENT),
            Some(Some(handle)) => {
                let child = Target { node: dir.node, handle };
                if let Some(attributes) = self.recollect(&child, |known, _| known.attributes) {
                    let number = self.enter(child)?;
                    return Ok(shown(number, attr(dir.node, &attributes), HOME_TTL));
                }
            }
            None => {}
        }
        let ticket = self.ticket(&dir);
        let call = look::Call::Lookup(wire::Named { name: name.clone() });
        let answer = self.ask(&dir, call, ticket).await?;
        let found = match answer.errno as i32 {
            0 => Some(Some(answer.handle.clone())),
            libc::ENOENT => Some(None),
            _ => None,
        };
        if let (true, Some(found)) = (answer.granted, found) {
            memory.keep(ticket, &dir, |known| known.keep_name(name, found));
        }
        if answer.granted_found {
            let child = Target { node: dir.node, handle: answer.handle.clone() };
            memory.keep(ticket, &child, |known| known.attributes = answer.attributes);
        }
        self.shown(dir.node, accepted(answer)?)
    }

    /// Nobody is asked, so a listing of the nodes waits for none of them.
    fn lookup_node(&self, name: &[u8]) -> Result<Shown, Errno> {
        let nodes = self.trees.nodes();
        let found = nodes.iter().find(|(_, known)| known.as_bytes() == name);
        let (node, _) = found.ok_or(Errno::NOENT)?;
        if *node == self.trees.parts.node {
            let attr = self.own_link();
            return Ok(shown(OWN_LINK, attr, OWN_TTL));
        }
        let target = Target { node: *node, handle: Bytes::new() };
        let number = self.enter(target)?;
        Ok(shown(number, self.node_root(*node), HOME_TTL))
    }

    fn own_link(&self) -> Attr {
        Attr { nlink: 1, ..self.trees.made_up(OWN_LINK, libc::S_IFLNK | 0o777, 1) }
    }

    fn node_root(&self, node: NodeId) -> Attr {
        self.trees.made_up(root_number(node), libc::S_IFDIR | 0o555, 0)
    }

    /// Gives the inode its number.
    fn enter(&self, target: Target) -> Result<u64, Errno> {
        let entered = self.trees.table().show(target);
        entered.map_err(|error| journal_failed(&error))?.map_err(|_| Errno::NFILE)
    }

    fn shown(&self, node: NodeId, answer: wire::Answer) -> Result<Shown, Errno> {
        let attributes = answer.attributes.ok_or(Errno::PROTO)?;
        check_handle(&answer.handle)?;
        let opened = match answer.warrant.is_empty() {
            true => None,
            false => {
                check_handle(&answer.warrant)?;
                self.trees.memory.warrant_opened(node, &answer.warrant);
                Some(self.enter_open(node, answer.warrant, open_flags(None, false))?)
            }
        };
        let number = self.enter(Target { node, handle: answer.handle })?;
        let entry = shown(number, attr(node, &attributes), HOME_TTL).entry;
        Ok(Shown { entry, opened })
    }

    fn enter_open(&self, node: NodeId, warrant: Bytes, flags: OpenFlags) -> Result<Opened, Errno> {
        let entered = self.trees.table().open(OpenFile { node, warrant: warrant.clone() });
        let entered = entered.map_err(|error| journal_failed(&error));
        match entered.and_then(|entered| entered.map_err(|_| Errno::NFILE)) {
            Ok(fh) => Ok(Opened { fh: Fh(fh), flags, backing: None }),
            Err(errno) => {
                self.trees.memory.warrant_closed(node, warrant);
                self.trees.give_back();
                Err(errno)
            }
        }
    }

    /// Answers with a name. What the kernel does not take is forgotten and closed.
    fn show(&self, to: Responder, result: Result<Shown, Errno>) {
        let shown = match result {
            Ok(shown) => shown,
            Err(errno) => {
                to.error(errno);
                return;
            }
        };
        let delivery = match &shown.opened {
            Some(opened) => to.created(&shown.entry, opened),
            None => to.entry(&shown.entry),
        };
        if delivery != Delivery::Accepted {
            self.forget_one(shown.entry.ino, 1);
            if let Some(opened) = shown.opened {
                self.release(opened.fh);
            }
        }
    }

    fn opened(&self, to: Responder, result: Result<Opened, Errno>) {
        match result {
            Ok(opened) => {
                if to.opened(&opened) != Delivery::Accepted {
                    self.release(opened.fh);
                }
            }
            Err(errno) => drop(to.error(errno)),
        }
    }

    fn forget(&self, nodes: Vec<unum_sys::fuse::Forgotten>) {
        for forgotten in nodes {
            self.forget_one(forgotten.ino, forgotten.lookups);
        }
    }

    fn forget_one(&self, ino: Ino, lookups: u64) {
        if ino.0 == ROOT || ino.0 == OWN_LINK {
            return;
        }
        if let Err(error) = self.trees.table().forget(ino.0, lookups) {
            journal_failed(&error);
        }
    }

    async fn attributes(&self, fh: Option<Fh>) -> Result<(Attr, Duration, Timestamp), Errno> {
        match self.about(self.header.ino)? {
            About::Root => {
                let attr = self.trees.made_up(ROOT, libc::S_IFDIR | 0o555, 0);
                Ok((attr, OWN_TTL, self.trees.mounted))
            }
            About::OwnLink => Ok((self.own_link(), OWN_TTL, self.trees.mounted)),
            About::Home(target) => {
                let (attributes, ttl) = self.home_attributes(&target, fh).await?;
                let mut attr = attr(target.node, &attributes);
                if target.handle.is_empty() {
                    attr.ino = Ino(root_number(target.node));
                }
                Ok((attr, ttl, time(attributes.btime)))
            }
        }
    }

    async fn home_attributes(
        &self,
        target: &Target,
        fh: Option<Fh>,
    ) -> Result<(wire::Attributes, Duration), Errno> {
        let known = |known: &Known, ttl| Some((known.attributes?, ttl));
        if let Some(kept) = self.recollect(target, known) {
            return Ok(kept);
        }
        let ticket = self.ticket(target);
        let mut answer = self.ask(target, look::Call::Attributes(wire::Nothing {}), ticket).await?;
        // The file may be open and have no name any more.
        if answer.errno as i32 == libc::ESTALE
            && let Some(open) = fh.and_then(|fh| self.open_file(fh).ok())
        {
            let call = look::Call::OpenAttributes(wire::Warrant { warrant: open.warrant });
            answer = self.ask(target, call, Ticket::NONE).await?;
        }
        let granted = answer.granted;
        let attributes = accepted(answer)?.attributes.ok_or(Errno::PROTO)?;
        if granted {
            let memory = &self.trees.memory;
            memory.keep(ticket, target, |known| known.attributes = Some(attributes));
        }
        Ok(self.recollect(target, known).unwrap_or((attributes, HOME_TTL)))
    }

    async fn getattr(&self, fh: Option<Fh>) -> Result<(Attr, Duration), Errno> {
        self.attributes(fh).await.map(|(attr, ttl, _)| (attr, ttl))
    }

    async fn statx(&self, fh: Option<Fh>) -> Result<Statx, Errno> {
        let (attr, attr_ttl, btime) = self.attributes(fh).await?;
        Ok(Statx { mask: STATX_FILLED, attr, btime, attr_ttl, ..Statx::default() })
    }

    async fn setattr(&self, set: SetAttr) -> Result<Attr, Errno> {
        let target = self.own_target()?;
        let open = set.fh.filter(|_| set.size.is_some()).and_then(|fh| self.open_file(fh).ok());
        let call = wire::SetAttributes {
            warrant: open.map(|open| open.warrant).unwrap_or_default(),
            mode: set.mode.map(|mode| mode & 0o7777),
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: set.atime.map(new_time),
            mtime: set.mtime.map(new_time),
        };
        let answer = self.change(&target, change::Call::SetAttributes(call)).await?;
        Ok(attr(target.node, &answer.attributes.ok_or(Errno::PROTO)?))
    }

    async fn readlink(&self) -> Result<Bytes, Errno> {
        match self.about(self.header.ino)? {
            About::Root => Err(Errno::INVAL),
            About::OwnLink => Ok(Bytes::from_static(b"/")),
            About::Home(target) => {
                if let Some(kept) = self.recollect(&target, |known, _| known.link.clone()) {
                    return Ok(kept);
                }
                let ticket = self.ticket(&target);
                let answer =
                    self.ask(&target, look::Call::ReadLink(wire::Nothing {}), ticket).await?;
                let (granted, answer) = (answer.granted, accepted(answer)?);
                if granted {
                    let content = Some(answer.content.clone());
                    self.trees.memory.keep(ticket, &target, |known| known.link = content);
                }
                Ok(answer.content)
            }
        }
    }

    async fn make(&self, call: change::Call) -> Result<Shown, Errno> {
        let target = self.own_target()?;
        let answer = self.change(&target, call).await?;
        self.shown(target.node, answer)
    }

    async fn symlink(&self, name: Vec<u8>, target: Vec<u8>) -> Result<Shown, Errno> {
        let link = wire::MakeLink { name: name.into(), target: target.into() };
        self.make(change::Call::MakeLink(link)).await
    }

    async fn link(&self, ino: Ino, name: Vec<u8>) -> Result<Shown, Errno> {
        let (dir, target) = (self.own_target()?, self.target(ino)?);
        if dir.node != target.node {
            return Err(Errno::XDEV);
        }
        let link = wire::Link { target: target.handle, name: name.into() };
        self.make(change::Call::Link(link)).await
    }

    async fn name_change(
        &self,
        name: Vec<u8>,
        call: impl FnOnce(wire::Named) -> change::Call,
    ) -> Result<(), Errno> {
        let target = self.own_target()?;
        self.change(&target, call(wire::Named { name: name.into() })).await.map(drop)
    }

    async fn rename(
        &self,
        name: Vec<u8>,
        new_parent: Ino,
        new_name: Vec<u8>,
        flags: u32,
    ) -> Result<(), Errno> {
        let (from, to) = (self.own_target()?, self.target(new_parent)?);
        if from.node != to.node {
            return Err(Errno::XDEV);
        }
        let call = wire::Rename {
            name: name.into(),
            new_parent: to.handle,
            new_name: new_name.into(),
            flags,
        };
        self.change(&from, change::Call::Rename(call)).await.map(drop)
    }

    async fn open(&self, flags: u32) -> Result<Opened, Errno> {
        let listing = flags & libc::O_DIRECTORY as u32 != 0;
        match self.about(self.header.ino)? {
            About::Root if listing => Ok(Opened::default()),
            About::Root | About::OwnLink => Err(Errno::ISDIR),
            About::Home(target) => self.open_at(&target, flags).await,
        }
    }

    async fn open_at(&self, target: &Target, flags: u32) -> Result<Opened, Errno> {
        let memory = &self.trees.memory;
        let reads = flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32;
        let listing = flags & libc::O_DIRECTORY as u32 != 0;
        let ticket = if reads { self.ticket(target) } else { Ticket::NONE };
        let opener = self.opener(flags);
        if let Some(warrant) = memory.warrant(target, &opener) {
            let mode = open_flags(memory.opened(ticket, target), listing);
            return self.enter_open(target.node, warrant, mode);
        }
        let call = look::Call::Open(wire::Open { flags });
        let answer = self.ask(target, call, ticket).await?;
        let (granted, warrant) = (answer.granted, accepted(answer)?.warrant);
        check_handle(&warrant)?;
        memory.warrant_opened(target.node, &warrant);
        let ticket = if granted { ticket } else { Ticket::NONE };
        memory.keep_warrant(ticket, target, opener, &warrant);
        let mode = open_flags(memory.opened(ticket, target), listing);
        self.enter_open(target.node, warrant, mode)
    }

    /// Who would get the same answer to the same open.
    fn opener(&self, flags: u32) -> Opener {
        let Header { uid, gid, pid, .. } = self.header;
        let groups = if uid == 0 { Vec::new() } else { groups_of(pid) };
        let counts = (libc::O_ACCMODE | libc::O_DIRECTORY) as u32 | OPEN_FOR_EXEC;
        Opener { uid, gid, groups, flags: flags & counts }
    }

    /// Forgets the open file at once, and has its home told.
    fn release(&self, fh: Fh) {
        let closed = self.trees.table().close(fh.0);
        let Ok(Some(file)) = closed.map_err(|error| journal_failed(&error)) else { return };
        self.trees.memory.warrant_closed(file.node, file.warrant);
        self.trees.give_back();
    }

    async fn read(&self, fh: Fh, offset: u64, size: u32) -> Result<Bytes, Errno> {
        let file = self.open_file(fh)?;
        let (most, mut content) = (wire::CONTENT_SIZE_MAX as u32, Vec::new());
        loop {
            let left = size - content.len() as u32;
            let at = offset.checked_add(content.len() as u64).ok_or(Errno::INVAL)?;
            let request =
                wire::Read { warrant: file.warrant.clone(), offset: at, size: left.min(most) };
            let reply = self.trees.ask::<Read>(file.node, request, &self.options_of_none()).await?;
            check(reply.errno)?;
            let came = reply.content.len() as u32;
            if came > left {
                return Err(Errno::PROTO);
            }
            if content.is_empty() && (came == size || came < left.min(most)) {
                return Ok(reply.content);
            }
            content.extend(&reply.content);
            if came < left.min(most) || content.len() as u32 == size {
                return Ok(content.into());
            }
        }
    }

    /// For calls whose right is in the warrant.
    fn options_of_none(&self) -> CallOptions {
        let Header { uid, gid, .. } = self.header;
        let caller = Caller { node: None, uid, gid, groups: Vec::new() };
        CallOptions::until(self.deadline).caller(caller)
    }

    async fn write(&self, write: unum_sys::fuse::Write) -> Result<u32, Errno> {
        let file = self.open_file(write.fh)?;
        if let Ok(target) = self.own_target() {
            self.trees.memory.changed(&target);
        }
        let append = write.flags & libc::O_APPEND as u32 != 0 && !write.cached;
        let mut done = 0;
        let mut rest = write.content;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(wire::CONTENT_SIZE_MAX));
            let size = piece.len() as u32;
            let request = wire::Write {
                warrant: file.warrant.clone(),
                offset: write.offset.checked_add(u64::from(done)).ok_or(Errno::FBIG)?,
                content: piece,
                append,
                lane: self.trees.parts.lane.0,
                number: self.header.unique.0,
            };
            let options = self.options_of_none();
            let reply = match append {
                true => self.trees.ask::<Append>(file.node, request, &options).await?,
                false => self.trees.ask::<Write>(file.node, request, &options).await?,
            };
            match check(reply.errno) {
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
                Ok(()) => done += reply.written.min(size),
            }
            // A second piece under the same number would get the first one's answer.
            if reply.written < size || append {
                break;
            }
        }
        Ok(done)
    }

    async fn readdir(&self, fh: Fh, offset: u64, size: u32) -> Result<DirectoryBuffer, Errno> {
        let mut buffer = DirectoryBuffer::new(size);
        if self.header.ino == Ino::ROOT {
            self.list_nodes(offset, &mut buffer);
            return Ok(buffer);
        }
        let file = self.open_file(fh)?;
        let list =
            wire::List { warrant: file.warrant, offset, size: size.min(wire::LISTING_SIZE_MAX) };
        let target = self.own_target()?;
        let answer = self.look(&target, look::Call::List(list)).await?;
        // The directory's; what is mounted on a name has another one, as on a local disk.
        let device = answer.attributes.map_or(0, |directory| directory.device);
        for entry in answer.entries {
            let next = if entry.next == 0 { i64::MAX as u64 } else { entry.next };
            let known = entry.name.len() <= wire::NAME_SIZE_MAX && !entry.name.contains(&b'/');
            if !known {
                return Err(Errno::PROTO);
            }
            let number = Ino(file_number(target.node, device, entry.inode));
            if buffer.add(number, next, entry.kind, &entry.name) == Added::Full {
                break;
            }
        }
        Ok(buffer)
    }

    fn list_nodes(&self, offset: u64, buffer: &mut DirectoryBuffer) {
        let (own, dots) = (self.trees.parts.node, [b".".to_vec(), b"..".to_vec()]);
        let dots = dots.into_iter().map(|name| (ROOT, libc::S_IFDIR, name));
        let nodes = self.trees.nodes().into_iter().map(|(node, name)| match node == own {
            true => (OWN_LINK, libc::S_IFLNK, name.into_bytes()),
            false => (root_number(node), libc::S_IFDIR, name.into_bytes()),
        });
        let behind = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (number, kind, name)) in dots.chain(nodes).enumerate().skip(behind) {
            if buffer.add(Ino(number), at as u64 + 1, kind, &name) == Added::Full {
                return;
            }
        }
    }

    async fn statfs(&self) -> Result<StatFs, Errno> {
        let About::Home(target) = self.about(self.header.ino)? else {
            return Ok(StatFs { block_size: 4096, name_len_max: 255, ..StatFs::default() });
        };
        let answer = self.look(&target, look::Call::Space(wire::Nothing {})).await?;
        let space = answer.space.ok_or(Errno::PROTO)?;
        Ok(StatFs {
            blocks: space.blocks,
            blocks_free: space.blocks_free,
            blocks_available: space.blocks_available,
            files: space.files,
            files_free: space.files_free,
            block_size: space.block_size,
            fragment_size: space.fragment_size,
            name_len_max: space.name_length_max,
        })
    }

    async fn fsync(&self, fh: Fh, content_only: bool) -> Result<(), Errno> {
        if self.header.ino == Ino::ROOT {
            return Ok(());
        }
        let file = self.open_file(fh)?;
        let request = wire::Sync { warrant: file.warrant, content_only };
        let reply = self.trees.ask::<Sync>(file.node, request, &self.options_of_none()).await?;
        check(reply.errno)
    }

    async fn setxattr(&self, name: Vec<u8>, value: Bytes, flags: u32) -> Result<(), Errno> {
        let target = self.own_target()?;
        let call = wire::SetXattr { name: name.into(), value, flags };
        self.change(&target, change::Call::SetXattr(call)).await.map(drop)
    }

    async fn getxattr(&self, name: Vec<u8>, size: u32) -> Result<Bytes, Errno> {
        let About::Home(target) = self.about(self.header.ino)? else { return Err(Errno::NODATA) };
        let name = Bytes::from(name);
        let kept = |known: &Known, _| known.xattrs.get(&name).cloned();
        if let Some(kept) = self.recollect(&target, kept) {
            return fits(kept?, size);
        }
        let ticket = self.ticket(&target);
        let call = look::Call::Xattr(wire::Named { name: name.clone() });
        let answer = self.ask(&target, call, ticket).await?;
        let found = check(answer.errno).map(|()| answer.content);
        // Whether there is one does not depend on who asks; whether it is told may.
        let lasting = matches!(found, Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP));
        let to_all = SHOWN_TO_ALL.iter().any(|prefix| name.starts_with(prefix));
        if answer.granted && lasting && to_all {
            let found = found.clone();
            self.trees.memory.keep(ticket, &target, |known| known.keep_xattr(name, found));
        }
        fits(found?, size)
    }

    async fn listxattr(&self, size: u32) -> Result<Bytes, Errno> {
        let About::Home(target) = self.about(self.header.ino)? else { return Ok(Bytes::new()) };
        fits(self.look(&target, look::Call::XattrNames(wire::Nothing {})).await?.content, size)
    }

    async fn fallocate(&self, fh: Fh, offset: u64, length: u64, mode: u32) -> Result<(), Errno> {
        let (target, file) = (self.own_target()?, self.open_file(fh)?);
        let call = wire::Allocate { warrant: file.warrant, mode, offset, length };
        self.change(&target, change::Call::Allocate(call)).await.map(drop)
    }

    async fn lseek(&self, fh: Fh, offset: u64, whence: u32) -> Result<u64, Errno> {
        let (target, file) = (self.own_target()?, self.open_file(fh)?);
        let call = wire::Seek { warrant: file.warrant, offset, whence };
        Ok(self.look(&target, look::Call::Seek(call)).await?.position)
    }
}

/// How the kernel shall treat an open file: `kept` says whether it may keep pages, and those from before.
fn open_flags(kept: Option<bool>, listing: bool) -> OpenFlags {
    let kept = match kept {
        None if listing => OpenFlags::NONE,
        None => OpenFlags::DIRECT_IO,
        Some(before) => {
            let before = if before { OpenFlags::KEEP_CACHE } else { OpenFlags::NONE };
            if listing { before | OpenFlags::CACHE_DIR } else { before }
        }
    };
    kept | OpenFlags::NOFLUSH
}

fn make(name: Vec<u8>, mode: u32, umask: u32, rdev: u32, flags: u32) -> wire::Make {
    wire::Make { name: name.into(), mode, umask, rdev, flags }
}

fn shown(number: u64, attr: Attr, ttl: Duration) -> Shown {
    let entry = Entry { ino: Ino(number), generation: 0, attr, entry_ttl: ttl, attr_ttl: ttl };
    Shown { entry, opened: None }
}

fn attr(node: NodeId, of: &wire::Attributes) -> Attr {
    Attr {
        ino: Ino(file_number(node, of.device, of.inode)),
        size: of.size,
        blocks: of.blocks,
        atime: time(of.atime),
        mtime: time(of.mtime),
        ctime: time(of.ctime),
        mode: of.mode,
        nlink: of.nlink,
        uid: of.uid,
        gid: of.gid,
        rdev: of.rdev,
        blksize: of.block_size,
        flags: AttrFlags::NONE,
    }
}

/// What stat(2) shows as the inode's number: the same for the same file, whoever asks and whenever; another for
/// every other file of its file system, and most likely for those of all others and all nodes.
fn file_number(node: NodeId, device: u64, inode: u64) -> u64 {
    inode ^ spread(spread(node.0) ^ device)
}

/// The same for a node's root, whatever that is.
fn root_number(node: NodeId) -> u64 {
    spread(spread(node.0) ^ u64::MAX)
}

/// The finalizer of SplitMix64: it tells every two numbers apart, and near ones far.
fn spread(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn time(time: Option<wire::Timestamp>) -> Timestamp {
    let time = time.unwrap_or_default();
    Timestamp { secs: time.secs, nanos: time.nanos.min(999_999_999) }
}

fn new_time(time: SetTime) -> wire::NewTime {
    match time {
        SetTime::Now => wire::NewTime { at: None },
        SetTime::At(at) => {
            wire::NewTime { at: Some(wire::Timestamp { secs: at.secs, nanos: at.nanos }) }
        }
    }
}

/// The errno that a home answered with.
fn check(errno: u32) -> Result<(), Errno> {
    match i32::try_from(errno) {
        Ok(0) => Ok(()),
        // The kernel refuses an answer with a number that is none.
        Ok(number @ 1..=511) => Err(Errno::from_raw_os_error(number)),
        _ => Err(Errno::PROTO),
    }
}

fn accepted(answer: wire::Answer) -> Result<wire::Answer, Errno> {
    check(answer.errno)?;
    Ok(answer)
}

fn check_handle(bytes: &[u8]) -> Result<(), Errno> {
    let fits = !bytes.is_empty() && bytes.len() <= wire::HANDLE_SIZE_MAX;
    if fits { Ok(()) } else { Err(Errno::PROTO) }
}

fn journal_failed(error: &std::io::Error) -> Errno {
    tracing::error!(%error, "the journal of what the kernel knows of host trees cannot be written");
    Errno::IO
}

fn fits(bytes: Bytes, size: u32) -> Result<Bytes, Errno> {
    if size != 0 && bytes.len() > size as usize { Err(Errno::RANGE) } else { Ok(bytes) }
}

/// The supplementary groups of a process, or of a thread. None, if it is gone.
fn groups_of(pid: u32) -> Vec<u32> {
    use std::io::Read;
    let mut text = String::new();
    let read = std::fs::File::open(format!("/proc/{pid}/status"))
        .and_then(|file| file.take(STATUS_SIZE_MAX).read_to_string(&mut text));
    if pid == 0 || read.is_err() {
        return Vec::new();
    }
    let line = text.lines().find_map(|line| line.strip_prefix("Groups:"));
    line.unwrap_or_default().split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

fn finish<T, D>(to: Responder, result: Result<T, Errno>, reply: impl FnOnce(Responder, T) -> D) {
    match result {
        Ok(value) => drop(reply(to, value)),
        Err(errno) => drop(to.error(errno)),
    }
}

/// The answer to a getxattr or listxattr that asked for `size` bytes.
fn sized(size: u32) -> impl FnOnce(Responder, Bytes) {
    move |to, bytes| {
        if size == 0 {
            to.xattr_size(bytes.len() as u32);
        } else {
            to.content(&bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_homes_errno_is_one_or_nothing() {
        assert_eq!(check(0), Ok(()));
        assert_eq!(check(2), Err(Errno::NOENT));
        assert_eq!(check(512), Err(Errno::PROTO));
        assert_eq!(check(u32::MAX), Err(Errno::PROTO));
    }

    #[test]
    fn groups_are_those_of_the_process() {
        let own: Vec<u32> =
            rustix::process::getgroups().unwrap().into_iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(groups_of(std::process::id()), own);
        assert_eq!(groups_of(0), Vec::<u32>::new());
    }
}
