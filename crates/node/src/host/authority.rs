//! Calls of other nodes on this machine's own files.
//!
//! A call is performed on a thread that may wait for a disk, with the rights of the user that the client's
//! kernel names. A client is believed whom its users are, as every member of the cluster is; root is believed
//! only if the policy says so.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use unum_net::{CallOptions, Client, Code, Guard, Incoming, Name, Router, Status};
use unum_proto::host as wire;
use unum_proto::ids::NodeId;
use unum_sys::credentials::{GROUPS_MAX, User};
use unum_sys::locks::{Kind, Range};

use super::grants::Grants;
use super::locks::{self, Locks, Owner};
use super::objects::{self, Object, acting};
use super::opens::{Answers, ChangeId, Opens};
use super::places::{Places, Policy};
use super::seal::{Grant, Key, Place};
use super::{Append, Change, EndLocks, Lock, Look, Read, Recall, Release, Renew, Sync, Write};
use crate::registry::Registry;

/// Calls that may be at work at once; more wait.
const WORKERS_MAX: usize = 64;
/// Who root of another node is here, unless it is root.
const NOBODY: u32 = 65_534;
/// How often it is looked which clients are gone.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// This machine's files, for the other nodes.
pub struct Authority {
    places: Arc<Places>,
    grants: Grants,
    client: Client,
    key: Key,
    opens: Opens,
    locks: Locks,
    changes: Answers<wire::Answer>,
    appends: Answers<wire::WriteReply>,
    workers: Semaphore,
}

/// Who asks.
struct Asker {
    client: NodeId,
    user: User,
}

type Answered = Result<wire::Answer, Errno>;

impl Authority {
    /// `run_dir`: where the key is kept.
    pub fn new(
        policy: Policy,
        run_dir: &Path,
        client: Client,
        locks: Locks,
    ) -> std::io::Result<Arc<Self>> {
        let places = Arc::new(Places::new(policy.clone()));
        let marked = places.clone();
        let record = run_dir.join("host-leases");
        let (grants, before) =
            Grants::new(&record, move |place| Object::reach_place(&marked, place));
        let mixed = format!("{} {}", policy.exports, policy.root_allowed);
        let home = Arc::new(Self {
            key: Key::load(&run_dir.join("host-key"), &mixed)?,
            grants,
            places,
            client,
            opens: Opens::default(),
            locks,
            changes: Answers::default(),
            appends: Answers::default(),
            workers: Semaphore::new(WORKERS_MAX),
        });
        for client in before {
            drop(tokio::spawn(home.clone().send_recalls(client)));
        }
        Ok(home)
    }

    /// What other nodes may call.
    pub fn routes(self: &Arc<Self>) -> Router {
        macro_rules! answer {
            ($method:ident) => {{
                let authority = self.clone();
                move |incoming: Incoming, request| {
                    let authority = authority.clone();
                    async move { authority.$method(incoming, request).await }
                }
            }};
        }
        Router::new()
            .call::<Look>(answer!(look))
            .call::<Change>(answer!(change))
            .call::<Read>(answer!(read))
            .call::<Write>(answer!(write))
            .call::<Append>(answer!(append))
            .call::<Sync>(answer!(sync))
            .call::<Lock>(answer!(lock))
            .call::<EndLocks>(answer!(end_locks))
            .call::<Release>(answer!(release))
            .call::<Renew>(answer!(renew))
    }

    /// Hears of changes by whatever program, on a thread of its own that ends with this.
    pub fn listen(self: &Arc<Self>) -> std::io::Result<()> {
        let home = Arc::downgrade(self);
        let listen = move || while home.upgrade().is_some_and(|home| home.grants.listen()) {};
        std::thread::Builder::new().name("host-listen".into()).spawn(listen).map(drop)
    }

    /// Lets go of what nobody needs any more. Ends when the caller drops it.
    pub async fn tidy(self: Arc<Self>, registry: Registry) {
        loop {
            crate::beats::beat(LOOK_PAUSE).await;
            self.places.let_go();
            self.grants.tidy();
            let up = |node| {
                registry.read(|state| state.nodes().get(node).is_some_and(|node| node.is_up()))
            };
            if self.opens.count() > 0 {
                self.opens.keep_only(up);
            }
            self.locks.keep_only(up).await;
        }
    }

    async fn look(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::Look,
    ) -> Result<wire::Answer, Status> {
        let asker = self.asker(&incoming)?;
        self.at_work(move |home| home.look_now(&asker, request)).await
    }

    async fn change(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::Change,
    ) -> Result<wire::Answer, Status> {
        let asker = self.asker(&incoming)?;
        let id = ChangeId { client: asker.client, lane: request.lane, number: request.number };
        let home = self.clone();
        let perform = move || async move {
            let work = move |home: &Self| answer(home.change_now(&asker, request));
            home.at_work(work).await.unwrap_or_else(|_| refusal(Errno::IO))
        };
        self.changes.once(id, perform).await.ok_or_else(lost)
    }

    async fn read(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::Read,
    ) -> Result<wire::ReadReply, Status> {
        let client = client(&incoming)?;
        self.at_work(move |home| match home.read_now(client, &request) {
            Ok(content) => wire::ReadReply { errno: 0, content },
            Err(errno) => wire::ReadReply { errno: number(errno), content: Bytes::new() },
        })
        .await
    }

    async fn write(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::Write,
    ) -> Result<wire::WriteReply, Status> {
        let asker = self.asker(&incoming)?;
        self.at_work(move |home| written(home.write_now(&asker, &request))).await
    }

    async fn append(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::Write,
    ) -> Result<wire::WriteReply, Status> {
        let asker = self.asker(&incoming)?;
        let id = ChangeId { client: asker.client, lane: request.lane, number: request.number };
        let home = self.clone();
        let perform = move || async move {
            let work = move |home: &Self| written(home.write_now(&asker, &request));
            home.at_work(work).await.unwrap_or_else(|_| written(Err(Errno::IO)))
        };
        self.appends.once(id, perform).await.ok_or_else(lost)
    }

    async fn sync(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::Sync,
    ) -> Result<wire::SyncReply, Status> {
        let client = client(&incoming)?;
        self.at_work(move |home| {
            let synced =
                home.file(client, &request.warrant).and_then(|file| match request.content_only {
                    true => rustix::fs::fdatasync(&*file),
                    false => rustix::fs::fsync(&*file),
                });
            wire::SyncReply { errno: synced.err().map_or(0, number) }
        })
        .await
    }

    async fn lock(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::Lock,
    ) -> Result<wire::Locked, Status> {
        let client = client(&incoming)?;
        let fence = self.locks.fence(client);
        let nothing = wire::Locked { fence, ..wire::Locked::default() };
        let home = self.clone();
        // A call that its client gives up must not end half-way.
        let done = tokio::spawn(async move { home.lock_now(client, fence, &request).await });
        Ok(match done.await.map_err(|_| lost())? {
            Ok(None) => nothing,
            Ok(Some((kind, Range { start, end }))) => {
                wire::Locked { kind: kind_number(kind), start, end, ..nothing }
            }
            Err(errno) => wire::Locked { errno: number(errno), ..nothing },
        })
    }

    /// What is in the way, if that was the question.
    async fn lock_now(
        self: &Arc<Self>,
        client: NodeId,
        fence: u64,
        request: &wire::Lock,
    ) -> Result<Option<(Kind, Range)>, Errno> {
        self.locks.admits(client, request.fence)?;
        let owner = Owner { client, owner: request.owner.ok_or(Errno::INVAL)? };
        let kind = kind_of(request.kind());
        let range = Range { start: request.start, end: request.end };
        let known = self.locks.holder(&owner);
        if request.test {
            let kind = kind.ok_or(Errno::INVAL)?;
            let warrant = request.warrant.clone();
            let look = move |home: &Self| {
                let file = match known {
                    Some(holder) => holder.file().clone(),
                    None => home.file(client, &warrant)?,
                };
                locks::conflict(&file, kind, range)
            };
            return self.at_work(look).await.unwrap_or(Err(Errno::IO));
        }
        let holder = match known {
            Some(holder) => holder,
            None if kind.is_none() => return Ok(None),
            None => self.begin_locks(owner, request.warrant.clone()).await?,
        };
        let patience = Duration::from_millis(request.wait_ms.min(wire::LOCK_WAIT_MS_MAX).into());
        self.locks.set(&owner, &holder, kind, range, Instant::now() + patience).await?;
        // It may have been taken for dead meanwhile, and its locks ended before this one began.
        if let Err(errno) = self.locks.admits(client, fence) {
            self.locks.end_of(&owner).await;
            return Err(errno);
        }
        Ok(None)
    }

    async fn begin_locks(
        self: &Arc<Self>,
        owner: Owner,
        warrant: Bytes,
    ) -> Result<locks::Holder, Errno> {
        let client = owner.client;
        let access = self.granted_by(client, &warrant)?.access;
        let open = move |home: &Self| objects::opened_again(&*home.file(client, &warrant)?, access);
        let file = self.at_work(open).await.unwrap_or(Err(Errno::IO))?;
        self.locks.begin(owner, file).await
    }

    async fn end_locks(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::EndLocks,
    ) -> Result<wire::Nothing, Status> {
        let invalid = || Status::new(Code::Invalid, "no owner of locks is named");
        let owner = request.owner.ok_or_else(invalid)?;
        let (owner, home) = (Owner { client: client(&incoming)?, owner }, self.clone());
        // A call that its client gives up must not end half-way.
        let done = tokio::spawn(async move { home.locks.end_of(&owner).await });
        done.await.map(|()| wire::Nothing {}).map_err(|_| lost())
    }

    async fn release(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::Release,
    ) -> Result<wire::Nothing, Status> {
        let client = client(&incoming)?;
        // The last close of a large file without a name frees it, which takes time.
        self.at_work(move |home| {
            request.warrants.iter().for_each(|warrant| home.opens.released(client, warrant));
            wire::Nothing {}
        })
        .await
    }

    async fn renew(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::Renew,
    ) -> Result<wire::RenewReply, Status> {
        let client = client(&incoming)?;
        let (lease, begins) = self.grants.renew(client, request.lease);
        if begins {
            drop(tokio::spawn(self.clone().send_recalls(client)));
        }
        Ok(wire::RenewReply {
            lease: lease.lease,
            term_ms: lease.term.as_millis() as u32,
            root_allowed: self.places.policy().root_allowed,
        })
    }

    /// Tells a client what it must not show any more, for as long as it has a lease.
    async fn send_recalls(self: Arc<Self>, client: NodeId) {
        while let Some(order) = self.grants.next_order(client).await {
            let places = order.recalls.places.iter();
            let handles = places.map(|place| self.key.handle(client, place)).collect();
            let request = wire::Recall { handles, all: order.recalls.all };
            let options = CallOptions::until(order.until);
            match self.client.call::<Recall>(&Name::Node(client), request, &options).await {
                Ok(_) => self.grants.confirmed(client, order.reaches),
                Err(error) => {
                    tracing::debug!(%client, %error, "a recall is not confirmed; its lease ends instead");
                    tokio::time::sleep_until(order.until).await;
                    self.grants.outlived(client);
                }
            }
        }
    }

    /// Runs what may wait for a disk.
    async fn at_work<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let _turn = self.workers.acquire().await.map_err(|_| lost())?;
        let home = self.clone();
        tokio::task::spawn_blocking(move || work(&home)).await.map_err(|_| lost())
    }

    /// For whom the call is performed.
    fn asker(&self, incoming: &Incoming) -> Result<Asker, Status> {
        let (client, caller) = (client(incoming)?, &incoming.caller);
        let mut groups = caller.groups.clone();
        groups.truncate(GROUPS_MAX);
        let user = User { uid: caller.uid, gid: caller.gid, groups };
        Ok(Asker { client, user: squashed(user, self.places.policy().root_allowed) })
    }

    fn find(&self, client: NodeId, handle: &[u8]) -> Result<Object, Errno> {
        if handle.is_empty() {
            return Object::root(&self.places);
        }
        let place = self.key.open_handle(client, handle).ok_or(Errno::STALE)?;
        Object::find(&self.places, place)
    }

    /// Whether the client may keep what it is told of this from now on.
    fn grant(&self, client: NodeId, lease: u64, object: &Object) -> bool {
        let watched = object.watched_by();
        watched.is_some_and(|(place, fd)| self.grants.grant(client, lease, place, fd))
    }

    fn granted_by(&self, client: NodeId, warrant: &[u8]) -> Result<Grant, Errno> {
        self.key.open_warrant(client, warrant).ok_or(Errno::STALE)
    }

    /// What a warrant opened, as it was opened or anew.
    fn file(&self, client: NodeId, warrant: &Bytes) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(file) = self.opens.get(client, warrant) {
            return Ok(file);
        }
        let grant = self.granted_by(client, warrant)?;
        let file = objects::open_granted(&self.places, &grant)?;
        Ok(self.opens.reopened(client, warrant, file))
    }

    fn look_now(&self, asker: &Asker, request: wire::Look) -> wire::Answer {
        let mut granted = false;
        let answered = self.look_granting(asker, request, &mut granted);
        wire::Answer { granted, ..answer(answered) }
    }

    fn look_granting(&self, asker: &Asker, request: wire::Look, granted: &mut bool) -> Answered {
        use wire::look::Call;
        let (client, user, lease) = (asker.client, &asker.user, request.lease);
        let call = request.call.ok_or(Errno::NOSYS)?;
        // These are about what is open, whether it has a name or not.
        match &call {
            Call::List(list) => return self.list(client, list),
            Call::Seek(seek) => return self.seek(client, seek),
            Call::OpenAttributes(open) => {
                let status = super::places::status(&*self.file(client, &open.warrant)?)?;
                let attributes = Some(objects::attributes(&status));
                return Ok(wire::Answer { attributes, ..wire::Answer::default() });
            }
            _ => {}
        }
        let object = self.find(client, &request.handle)?;
        // Before anything is looked at.
        *granted = self.grant(client, lease, &object);
        let content =
            |content: Vec<u8>| wire::Answer { content: content.into(), ..Default::default() };
        match call {
            Call::Lookup(named) => {
                let found = object.lookup(&self.places, user, &named.name)?;
                let granted_found = self.grant(client, lease, &found);
                Ok(wire::Answer { granted_found, ..self.shown(client, &found)? })
            }
            Call::Attributes(_) => {
                let attributes = Some(object.attributes()?);
                Ok(wire::Answer { attributes, ..wire::Answer::default() })
            }
            Call::ReadLink(_) => object.read_link().map(content),
            Call::Open(open) => self.open(asker, &object, open.flags),
            Call::Space(_) => {
                Ok(wire::Answer { space: Some(object.space()?), ..wire::Answer::default() })
            }
            Call::Xattr(named) => object.xattr(user, &named.name).map(content),
            Call::XattrNames(_) => object.xattr_names(user).map(content),
            Call::List(_) | Call::Seek(_) | Call::OpenAttributes(_) => Err(Errno::NOSYS),
        }
    }

    fn open(&self, asker: &Asker, object: &Object, flags: u32) -> Answered {
        // A directory above the exports is listed by its warrant alone.
        if let place @ Place::Above { .. } = object.place() {
            let warrant = self.key.warrant(asker.client, &Grant { place, access: 0 });
            return Ok(wire::Answer { warrant, ..wire::Answer::default() });
        }
        let opening = object.open(&asker.user, flags)?;
        let warrant = self.opened(asker.client, opening);
        Ok(wire::Answer { warrant, ..wire::Answer::default() })
    }

    fn opened(&self, client: NodeId, opening: objects::Opening) -> Bytes {
        let warrant = self.key.warrant(client, &opening.grant);
        self.opens.opened(client, &warrant, opening.fd);
        warrant
    }

    fn list(&self, client: NodeId, list: &wire::List) -> Answered {
        let size = list.size.clamp(1024, wire::LISTING_SIZE_MAX) as usize;
        if let Place::Above { path } = self.granted_by(client, &list.warrant)?.place {
            let entries = objects::list_above(&self.places, &path, list.offset);
            return Ok(wire::Answer { entries, ..wire::Answer::default() });
        }
        let directory = self.file(client, &list.warrant)?;
        let attributes = Some(objects::attributes(&super::places::status(&*directory)?));
        let entries = objects::list(&*directory, list.offset, size)?;
        Ok(wire::Answer { entries, attributes, ..wire::Answer::default() })
    }

    fn seek(&self, client: NodeId, seek: &wire::Seek) -> Answered {
        use rustix::fs::SeekFrom;
        let to = match seek.whence as i32 {
            libc::SEEK_DATA => SeekFrom::Data(seek.offset),
            libc::SEEK_HOLE => SeekFrom::Hole(seek.offset),
            _ => return Err(Errno::INVAL),
        };
        let position = rustix::fs::seek(&*self.file(client, &seek.warrant)?, to)?;
        Ok(wire::Answer { position, ..wire::Answer::default() })
    }

    fn change_now(&self, asker: &Asker, request: wire::Change) -> Answered {
        use wire::change::Call;
        let (client, user, places) = (asker.client, &asker.user, &self.places);
        let call = request.call.ok_or(Errno::NOSYS)?;
        if let Call::Allocate(allocate) = &call {
            return self.allocate(asker, allocate);
        }
        let object = self.find(client, &request.handle)?;
        let nothing = |()| wire::Answer::default();
        match call {
            Call::Create(make) => self.created(client, object.create(places, user, &make)?),
            Call::MakeUnnamed(make) => {
                self.created(client, object.create_unnamed(places, user, &make)?)
            }
            Call::MakeDirectory(make) => {
                self.shown(client, &object.make_directory(places, user, &make)?)
            }
            Call::MakeNode(make) => self.shown(client, &object.make_node(places, user, &make)?),
            Call::MakeLink(link) => self.shown(client, &object.make_link(places, user, &link)?),
            Call::Unlink(named) => object.unlink(user, &named.name).map(nothing),
            Call::RemoveDirectory(named) => {
                object.remove_directory(places, user, &named.name).map(nothing)
            }
            Call::Rename(rename) => {
                let to = self.find(client, &rename.new_parent)?;
                let (name, new_name) = (&rename.name, &rename.new_name);
                object.rename(places, user, name, &to, new_name, rename.flags).map(nothing)
            }
            Call::Link(link) => {
                let target = self.find(client, &link.target)?;
                object.link(user, &target, &link.name)?;
                self.shown(client, &target)
            }
            Call::SetAttributes(set) => {
                let open = match set.warrant.is_empty() {
                    true => None,
                    false => {
                        self.locks.admits(client, set.fence)?;
                        Some(self.file(client, &set.warrant)?)
                    }
                };
                object.set_attributes(user, &set, open.as_deref())?;
                let attributes = Some(object.attributes()?);
                Ok(wire::Answer { attributes, ..wire::Answer::default() })
            }
            Call::SetXattr(set) => object.set_xattr(user, &set).map(nothing),
            Call::RemoveXattr(named) => object.remove_xattr(user, &named.name).map(nothing),
            Call::Allocate(_) => Err(Errno::NOSYS),
        }
    }

    fn allocate(&self, asker: &Asker, allocate: &wire::Allocate) -> Answered {
        self.locks.admits(asker.client, allocate.fence)?;
        let file = self.file(asker.client, &allocate.warrant)?;
        let mode = rustix::fs::FallocateFlags::from_bits(allocate.mode).ok_or(Errno::OPNOTSUPP)?;
        acting(&asker.user, || {
            rustix::fs::fallocate(&*file, mode, allocate.offset, allocate.length)
        })??;
        Ok(wire::Answer::default())
    }

    fn created(&self, client: NodeId, (object, opening): (Object, objects::Opening)) -> Answered {
        let warrant = self.opened(client, opening);
        Ok(wire::Answer { warrant, ..self.shown(client, &object)? })
    }

    fn shown(&self, client: NodeId, object: &Object) -> Answered {
        Ok(wire::Answer {
            handle: self.key.handle(client, &object.place()),
            attributes: Some(object.attributes()?),
            ..wire::Answer::default()
        })
    }

    fn read_now(&self, client: NodeId, request: &wire::Read) -> Result<Bytes, Errno> {
        self.locks.admits(client, request.fence)?;
        let file = self.file(client, &request.warrant)?;
        let size = (request.size as usize).min(wire::CONTENT_SIZE_MAX);
        let mut content = Vec::with_capacity(size);
        while content.len() < size {
            let at = request.offset.checked_add(content.len() as u64).ok_or(Errno::INVAL)?;
            let room = rustix::buffer::spare_capacity(&mut content);
            match rustix::io::pread(&*file, room, at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                // What was read before it is the answer.
                Err(errno) if content.is_empty() => return Err(errno),
                Err(_) => break,
            }
        }
        content.truncate(size);
        Ok(content.into())
    }

    /// With the user's rights: root's would leave setuid bits where a user's write takes them away, and
    /// reach into what is reserved for root.
    fn write_now(&self, asker: &Asker, request: &wire::Write) -> Result<u32, Errno> {
        self.locks.admits(asker.client, request.fence)?;
        let file = self.file(asker.client, &request.warrant)?;
        acting(&asker.user, || write_all(&file, request))?
    }
}

/// What leaves this node waits until what changed before is known to all who kept it.
impl Guard for Authority {
    fn is_idle(&self) -> bool {
        self.grants.is_idle()
    }

    /// Consensus and gossip carry nothing of programs by themselves, and must not wait for anybody; recalls and
    /// leases are what is waited for. What the registry tells of programs passes as `registry.tell`.
    fn is_free(&self, method: &str) -> bool {
        match method.split_once('.') {
            Some(("registry", verb)) => verb != "tell",
            Some(("file", verb)) => verb != "give-back",
            Some(("membership" | "cluster", _)) => true,
            Some(("host", verb)) => matches!(verb, "recall" | "renew" | "release"),
            _ => false,
        }
    }

    fn settle(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.grants.settle())
    }
}

fn write_all(file: &OwnedFd, request: &wire::Write) -> Result<u32, Errno> {
    let mut done = 0;
    while done < request.content.len() {
        let rest = &request.content[done..];
        let at = request.offset.checked_add(done as u64).ok_or(Errno::FBIG)?;
        let written = match request.append {
            true => {
                let parts = [std::io::IoSlice::new(rest)];
                rustix::io::pwritev2(file, &parts, 0, rustix::io::ReadWriteFlags::APPEND)
            }
            false => rustix::io::pwrite(file, rest, at),
        };
        match written {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(done as u32)
}

/// Root of another node is nobody here, unless it may be root.
fn squashed(user: User, root_allowed: bool) -> User {
    let other = |id: u32| if id == 0 || id == u32::MAX { NOBODY } else { id };
    if root_allowed && user.uid != u32::MAX {
        return user;
    }
    let groups = user.groups.into_iter().filter(|gid| *gid != 0 && *gid != u32::MAX).collect();
    User { uid: other(user.uid), gid: other(user.gid), groups }
}

fn kind_of(kind: wire::LockKind) -> Option<Kind> {
    match kind {
        wire::LockKind::Unlock => None,
        wire::LockKind::Read => Some(Kind::Read),
        wire::LockKind::Write => Some(Kind::Write),
    }
}

fn kind_number(kind: Kind) -> i32 {
    match kind {
        Kind::Read => wire::LockKind::Read as i32,
        Kind::Write => wire::LockKind::Write as i32,
    }
}

fn client(incoming: &Incoming) -> Result<NodeId, Status> {
    incoming.caller.node.ok_or_else(|| Status::denied("only nodes of the cluster may ask this"))
}

fn lost() -> Status {
    Status::internal("the call was lost on its home")
}

fn number(errno: Errno) -> u32 {
    errno.raw_os_error() as u32
}

fn refusal(errno: Errno) -> wire::Answer {
    wire::Answer { errno: number(errno), ..wire::Answer::default() }
}

fn answer(answered: Answered) -> wire::Answer {
    answered.unwrap_or_else(refusal)
}

fn written(written: Result<u32, Errno>) -> wire::WriteReply {
    match written {
        Ok(written) => wire::WriteReply { errno: 0, written },
        Err(errno) => wire::WriteReply { errno: number(errno), written: 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn root_of_another_node_is_nobody_unless_allowed() {
        assert_eq!(squashed(user(0, 0, &[0, 4]), false), user(NOBODY, NOBODY, &[4]));
        assert_eq!(squashed(user(0, 0, &[0, 4]), true), user(0, 0, &[0, 4]));
        assert_eq!(squashed(user(7, 0, &[0]), false), user(7, NOBODY, &[]));
        assert_eq!(squashed(user(7, 8, &[9]), false), user(7, 8, &[9]));
        // The kernel's word for a user that has no number there.
        assert_eq!(squashed(user(u32::MAX, 5, &[]), true).uid, NOBODY);
    }
}
