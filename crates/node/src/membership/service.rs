//! The loop that drives gossip over the network, and the handle by which the rest of the daemon
//! sees the members.

use super::codec::{Identity, RUN_STRIDE};
use super::gossip::{Gossip, MemberState, Outgoing, Timings, View};
use super::loads::{read_cores, read_machine};
use crate::beats::{self, beat};
use crate::tasks::{Stop, Tasks};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use unum_net::{Client, Incoming, Name, Router};
use unum_proto::cluster::{GossipPacket, Load, Nothing};
use unum_proto::ids::NodeId;

/// Packets that wait for gossip's loop; more are dropped, as a network would.
const INBOX_MAX: usize = 256;
/// Packets that wait for one neighbour's connection; more are dropped.
const OUTBOX_MAX: usize = 16;
/// How long a packet may wait for a connection before it is worth nothing.
const SEND_TIME_MAX: Duration = Duration::from_millis(500);
/// How often this node looks at its own load.
const LOAD_PERIOD: Duration = Duration::from_secs(1);
/// How often it is told even if it did not change.
const LOAD_SILENCE_MAX: u32 = 5;

unum_net::methods! {
    /// One gossip packet, one-way.
    pub Gossiped = "membership.gossip", Control, idempotent, GossipPacket => Nothing;
}

/// What the services add to a node's load report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceLoad {
    pub programs: u32,
    pub storage_total: u64,
    pub storage_free: u64,
    pub epoch: u64,
    pub applied: u64,
}

/// Who is alive, as gossip sees it. Cheap to clone.
#[derive(Clone)]
pub struct Membership {
    own: NodeId,
    view: watch::Receiver<Arc<View>>,
    inbox: mpsc::Sender<(NodeId, Bytes)>,
    contacts: Arc<watch::Sender<BTreeSet<NodeId>>>,
    /// What the services reported last. Held only to copy it.
    load: Arc<Mutex<ServiceLoad>>,
    goodbye: Arc<watch::Sender<bool>>,
}

/// What has to be there before gossip can start: its handle and the ends of its queues.
pub struct Starting {
    pub membership: Membership,
    inbox: mpsc::Receiver<(NodeId, Bytes)>,
    view: watch::Sender<Arc<View>>,
}

/// Makes the handle, so that routes and services can be built before the client exists.
pub fn prepare(own: NodeId) -> Starting {
    let (sender, inbox) = mpsc::channel(INBOX_MAX);
    let (view, seen) = watch::channel(Arc::new(View::new()));
    let membership = Membership {
        own,
        view: seen,
        inbox: sender,
        contacts: Arc::new(watch::Sender::new(BTreeSet::new())),
        load: Arc::default(),
        goodbye: Arc::new(watch::Sender::new(false)),
    };
    Starting { membership, inbox, view }
}

impl Membership {
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Whether a call to the node has a chance: it is neither down nor unknown.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        let state = self.view.borrow().get(&node).map(|member| member.state);
        matches!(state, Some(MemberState::Alive | MemberState::Suspect))
    }

    /// The nodes that the registry knows.
    pub fn set_contacts(&self, nodes: BTreeSet<NodeId>) {
        self.contacts.send_if_modified(|old| {
            let changed = *old != nodes;
            *old = nodes;
            changed
        });
    }

    /// Changes what this node reports of its services.
    pub fn report(&self, change: impl FnOnce(&mut ServiceLoad)) {
        change(&mut self.load.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// At the stop, tell the others that this node goes, rather than let them find out.
    pub fn say_goodbye(&self) {
        self.goodbye.send_replace(true);
    }

    /// Takes the packets that come in.
    pub fn routes(&self) -> Router {
        let inbox = self.inbox.clone();
        Router::new().cast::<Gossiped>(move |incoming: Incoming, packet: GossipPacket| {
            if let Some(node) = incoming.caller.node {
                // A full inbox loses the packet, which gossip is made for.
                let _ = inbox.try_send((node, packet.packet));
            }
        })
    }
}

impl Starting {
    /// Starts gossip. `run` is the number of this run of the daemon.
    pub fn start(self, client: Client, timings: Timings, run: u64, tasks: &Tasks) {
        let own = Identity { node: self.membership.own, run: run.saturating_mul(RUN_STRIDE) };
        let start = beats::start();
        let gossip = Gossip::new(own, timings, rand::random(), Duration::ZERO);
        let contacts = self.membership.contacts.subscribe();
        let service = Service {
            gossip,
            start,
            contacts,
            membership: self.membership,
            inbox: self.inbox,
            view: self.view,
            outboxes: BTreeMap::new(),
            client,
            tasks: tasks.clone(),
            reported: (Load::default(), 0),
            cores: 0,
        };
        tasks.spawn_lasting("gossip", service.run(tasks.stop()));
    }
}

struct Service {
    gossip: Gossip,
    start: Instant,
    contacts: watch::Receiver<BTreeSet<NodeId>>,
    membership: Membership,
    inbox: mpsc::Receiver<(NodeId, Bytes)>,
    view: watch::Sender<Arc<View>>,
    outboxes: BTreeMap<NodeId, mpsc::Sender<Bytes>>,
    client: Client,
    tasks: Tasks,
    /// The load told last, and how many looks ago.
    reported: (Load, u32),
    /// Seldom another, and dear to find out.
    cores: u32,
}

impl Service {
    async fn run(mut self, stop: Stop) {
        self.report_load();
        let mut loads = Box::pin(beat(LOAD_PERIOD));
        loop {
            let wakeup = self.gossip.next_wakeup().map(|at| self.start + at);
            // Packets come before timers: what has arrived may refute what is about to be said.
            tokio::select! {
                biased;
                () = stop.requested() => break,
                Ok(()) = self.contacts.changed() => self.learn_contacts(),
                Some((from, packet)) = self.inbox.recv() => self.receive(from, &packet),
                () = &mut loads => {
                    self.report_load();
                    loads.set(beat(LOAD_PERIOD));
                }
                () = sleep_until(wakeup) => self.gossip.tick(self.start.elapsed()),
            }
            self.flush();
        }
        if *self.membership.goodbye.borrow() {
            self.gossip.leave(self.start.elapsed());
            self.say_last_words().await;
        }
    }

    fn learn_contacts(&mut self) {
        let contacts = self.contacts.borrow_and_update().clone();
        self.outboxes.retain(|node, _| contacts.contains(node));
        self.gossip.set_contacts(contacts, self.start.elapsed());
    }

    fn receive(&mut self, from: NodeId, packet: &[u8]) {
        if let Err(error) = self.gossip.receive(from, packet, self.start.elapsed()) {
            tracing::debug!(%from, %error, "gossip packet");
        }
    }

    fn report_load(&mut self) {
        if self.reported.1 == 0 {
            self.cores = read_cores();
        }
        let service = *self.membership.load.lock().unwrap_or_else(PoisonError::into_inner);
        let load = Load {
            programs: service.programs,
            storage_total: service.storage_total,
            storage_free: service.storage_free,
            epoch: service.epoch,
            applied: service.applied,
            ..read_machine(self.cores)
        };
        let (last, looks) = &mut self.reported;
        *looks += 1;
        if *looks >= LOAD_SILENCE_MAX || differs(last, &load) {
            self.reported = (load, 0);
            self.gossip.report(load);
        }
    }

    fn flush(&mut self) {
        for Outgoing { to, packet } in self.gossip.take_outgoing() {
            let (client, tasks) = (&self.client, &self.tasks);
            let outbox =
                self.outboxes.entry(to).or_insert_with(|| open_outbox(client.clone(), tasks, to));
            let _ = outbox.try_send(packet);
        }
        let view = self.gossip.view(self.start.elapsed());
        self.view.send_if_modified(|old| {
            let changed = **old != view;
            if changed {
                note_changes(old, &view);
                *old = Arc::new(view);
            }
            changed
        });
    }

    async fn say_last_words(&mut self) {
        for Outgoing { to, packet } in self.gossip.take_outgoing() {
            let name = Name::Node(to);
            let cast = self.client.cast::<Gossiped>(&name, GossipPacket { packet });
            let _ = tokio::time::timeout(SEND_TIME_MAX, cast).await;
        }
    }
}

/// Small changes of memory and load are not worth a message.
fn differs(a: &Load, b: &Load) -> bool {
    let coarse = |load: &Load| {
        let free = load.memory_free.checked_div(load.memory_total / 16).unwrap_or(0);
        (load.programs, load.epoch, free, load.load_milli / 250, load.runnable / 2)
    };
    coarse(a) != coarse(b)
}

fn note_changes(old: &View, new: &View) {
    for (node, member) in new {
        let before = old.get(node).map(|member| member.state);
        if before != Some(member.state) {
            tracing::info!(%node, from = ?before, to = ?member.state, "member");
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A neighbour that cannot be reached delays nobody else: each has a queue and a task of its own,
/// which ends when the queue is dropped.
fn open_outbox(client: Client, tasks: &Tasks, to: NodeId) -> mpsc::Sender<Bytes> {
    let (sender, mut packets) = mpsc::channel::<Bytes>(OUTBOX_MAX);
    let stop = tasks.stop();
    tasks.spawn("gossip to a neighbour", async move {
        let name = Name::Node(to);
        loop {
            let packet = tokio::select! {
                () = stop.requested() => return,
                packet = packets.recv() => packet,
            };
            let Some(packet) = packet else { return };
            let cast = client.cast::<Gossiped>(&name, GossipPacket { packet });
            if let Ok(Err(error)) = tokio::time::timeout(SEND_TIME_MAX, cast).await {
                tracing::trace!(%to, %error, "gossip not sent");
            }
        }
    });
    sender
}
