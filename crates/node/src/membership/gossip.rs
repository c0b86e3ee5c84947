//! Gossip as a state machine: time and packets in, packets and a view of the members out.
//!
//! Invariants:
//! - A stall of our own never kills a neighbour. The clock that drives suspicion stands still while
//!   this daemon does not run, so answers that waited in our sockets are read before anybody is
//!   accused.
//! - Who may be a member at all comes from the registry (`set_contacts`); packets that speak of
//!   others change nothing that is shown.
//! - No suspicion of a node that is heard lasts: it is told, and refutes it.
//! - A contact that nobody hears of becomes `Down` too, after `SILENCE_MAX` of this node's time.
//!
//! Left out: who is a member. Gossip suggests, the registry decides.

use super::codec::{Codec, CodecError, Identity};
use super::loads::{LoadTable, Loads};
use crate::beats::{due, to_slot};
use bytes::{BufMut, Bytes};
use foca::{Foca, OwnedNotification, State};
use prost::Message as _;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;
use unum_proto::cluster::Load;
use unum_proto::ids::NodeId;

/// The largest gossip packet.
pub const PACKET_SIZE_MAX: usize = 4096;
/// A timer that fires later than this says that this daemon did not run: the time is not counted.
pub const LATENESS_MAX: Duration = Duration::from_millis(60);
/// Time for the answers in our sockets to be read after such a stall.
const GRACE: Duration = Duration::from_millis(30);
/// How often nodes that are not alive are called again.
pub const ANNOUNCE_PERIOD: Duration = Duration::from_millis(500);
/// How often it is looked for such nodes when gossip told of none.
const SWEEP_PERIOD: Duration = Duration::from_secs(5);
/// Contacts called in one announcement.
const ANNOUNCE_CONTACTS_MAX: usize = 8;
const INDIRECT_PROBES: NonZeroUsize = NonZeroUsize::new(3).unwrap();
const UPDATE_TRANSMISSIONS: NonZeroU8 = NonZeroU8::new(6).unwrap();
const REMOVE_DOWN_AFTER: Duration = Duration::from_secs(60);

/// How quickly the dead are found, and how patient that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    pub period: Duration,
    pub timeout: Duration,
    pub suspicion: Duration,
}

impl Timings {
    /// A contact that was never heard is down after this: as if it had been probed and suspected.
    pub fn silence_max(&self) -> Duration {
        ANNOUNCE_PERIOD + self.period * 2 + self.suspicion
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// In the registry, not heard of since this daemon started, and it is too early to tell.
    Unknown,
    Alive,
    Suspect,
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemberView {
    pub state: MemberState,
    /// The newest known run of its daemon, 0 when none is known.
    pub run: u64,
    pub load: Option<Load>,
}

/// What gossip knows about every node of the registry, this one included.
pub type View = BTreeMap<NodeId, MemberView>;

#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("{caller} sent a gossip packet in the name of {claimed}")]
    Impostor { caller: NodeId, claimed: NodeId },
    #[error("a gossip packet was refused: {0}")]
    Refused(String),
}

/// A packet to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    pub to: NodeId,
    pub packet: Bytes,
}

pub struct Gossip {
    foca: Foca<Identity, Codec, SplitMix, Loads>,
    loads: LoadTable,
    own: NodeId,
    timings: Timings,
    clock: RunningClock,
    timers: BTreeMap<(Duration, u64), foca::Timer<Identity>>,
    timer_count: u64,
    /// Nodes of the registry, and since when (on our clock) each has been one.
    contacts: BTreeMap<NodeId, Duration>,
    announce_at: Duration,
    own_load: Load,
    outgoing: Vec<Outgoing>,
}

impl Gossip {
    pub fn new(own: Identity, timings: Timings, seed: u64, now: Duration) -> Self {
        let loads = LoadTable::default();
        let spread = Loads(loads.clone());
        let foca = Foca::with_custom_broadcast(own, config(timings), SplitMix(seed), Codec, spread);
        Self {
            foca,
            loads,
            own: own.node,
            timings,
            clock: RunningClock::new(now),
            timers: BTreeMap::new(),
            timer_count: 0,
            contacts: BTreeMap::new(),
            announce_at: Duration::ZERO,
            own_load: Load::default(),
            outgoing: Vec::new(),
        }
    }

    /// The nodes that the registry knows.
    pub fn set_contacts(&mut self, nodes: impl IntoIterator<Item = NodeId>, now: Duration) {
        let now = self.clock.read(now);
        let old = std::mem::take(&mut self.contacts);
        for node in nodes {
            if node != self.own {
                self.contacts.insert(node, old.get(&node).copied().unwrap_or(now));
                if !old.contains_key(&node) {
                    self.announce_at = self.announce_at.min(now);
                }
            }
        }
        self.loads.keep_only(self.contacts.keys().copied().chain([self.own]));
    }

    /// Takes a packet that came over a connection of `caller`.
    pub fn receive(
        &mut self,
        caller: NodeId,
        packet: &[u8],
        now: Duration,
    ) -> Result<(), PacketError> {
        let mut peek = packet;
        let header = foca::Codec::<Identity>::decode_header(&mut Codec, &mut peek)?;
        if header.src.node != caller {
            return Err(PacketError::Impostor { caller, claimed: header.src.node });
        }
        if !self.contacts.contains_key(&caller) {
            return Err(PacketError::Refused(format!("{caller} is not in the registry here")));
        }
        let now = self.clock.read(now);
        self.act(now, |foca, runtime| foca.handle_data(packet, runtime))
            .map_err(|error| PacketError::Refused(error.to_string()))?;
        if matches!(header.message, foca::Message::Ack(_)) {
            self.pass_probe_stage(header.src, now);
        }
        self.warn_if_suspect(caller)
    }

    /// Who speaks though it is suspect here learns of it at once. Otherwise the rumor that it
    /// could refute may never reach it, and no probe that succeeds ends a suspicion.
    fn warn_if_suspect(&mut self, caller: NodeId) -> Result<(), PacketError> {
        let suspect = self
            .foca
            .iter_membership_state()
            .find(|member| member.id().node == caller && matches!(member.state(), State::Suspect));
        if let Some(suspect) = suspect {
            let packet = warning(*self.foca.identity(), suspect)?;
            self.outgoing.push(Outgoing { to: caller, packet });
        }
        Ok(())
    }

    /// The timer of the indirect probes of a node that has answered does nothing but has to be
    /// fired once: now, rather than by a wake-up of its own. (If the answer was to an older probe,
    /// the others are asked a little early.)
    fn pass_probe_stage(&mut self, answered: Identity, now: Duration) {
        let is_its_stage = |timer: &foca::Timer<Identity>| matches!(timer, foca::Timer::SendIndirectProbe { probed_id, .. } if *probed_id == answered);
        let key = self.timers.iter().find(|(_, timer)| is_its_stage(timer)).map(|(key, _)| *key);
        if let Some(timer) = key.and_then(|key| self.timers.remove(&key))
            && let Err(error) = self.act(now, |foca, runtime| foca.handle_timer(timer, runtime))
        {
            tracing::debug!(%error, "gossip timer");
        }
    }

    /// Fires what is due. To be called at `next_wakeup` or soon after.
    pub fn tick(&mut self, now: Duration) {
        if let Some(due) = self.next_due() {
            self.clock.discount_lateness(due, now);
        }
        let now = self.clock.read(now);
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            let timer = entry.remove();
            if let Err(error) = self.act(now, |foca, runtime| foca.handle_timer(timer, runtime)) {
                tracing::debug!(%error, "gossip timer");
            }
        }
        if self.announce_at <= now {
            self.announce(now);
        }
    }

    /// When `tick` wants to be called, on the caller's clock.
    pub fn next_wakeup(&self) -> Option<Duration> {
        self.next_due().map(|due| self.clock.to_outer(due))
    }

    /// Tells the others of this node's load.
    pub fn report(&mut self, load: Load) {
        let sequence = self.own_load.sequence + 1;
        self.own_load = Load { node: self.own.0, run: self.foca.identity().run, sequence, ..load };
        if let Err(error) = self.foca.add_broadcast(&self.own_load.encode_to_vec()) {
            tracing::debug!(%error, "load report");
        }
    }

    /// Says goodbye: the others need not wait for suspicion.
    pub fn leave(&mut self, now: Duration) {
        let now = self.clock.read(now);
        if let Err(error) = self.act(now, |foca, runtime| foca.leave_cluster(runtime)) {
            tracing::debug!(%error, "goodbye");
        }
    }

    pub fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }

    pub fn view(&self, now: Duration) -> View {
        let now = self.clock.read(now);
        let known = self.known();
        let mut view: View = self
            .contacts
            .iter()
            .map(|(node, since)| {
                // The clock steps back a little when a stall is forgiven.
                let silence = now.saturating_sub(*since);
                (*node, self.member_view(*node, known.get(node), silence))
            })
            .collect();
        let run = self.foca.identity().run;
        let load = Some(self.own_load).filter(|load| load.sequence > 0);
        view.insert(self.own, MemberView { state: MemberState::Alive, run, load });
        view
    }

    fn member_view(
        &self,
        node: NodeId,
        known: Option<&(State, Identity)>,
        silence: Duration,
    ) -> MemberView {
        let state = match known {
            Some((State::Alive, _)) => MemberState::Alive,
            Some((State::Suspect, _)) => MemberState::Suspect,
            Some((State::Down, _)) => MemberState::Down,
            None if silence > self.timings.silence_max() => MemberState::Down,
            None => MemberState::Unknown,
        };
        let run = known.map_or(0, |(_, identity)| identity.run);
        let load = self.loads.of(node);
        MemberView { state, run, load }
    }

    fn known(&self) -> BTreeMap<NodeId, (State, Identity)> {
        let mut known: BTreeMap<NodeId, (State, Identity)> = BTreeMap::new();
        for member in self.foca.iter_membership_state() {
            let entry = (member.state(), *member.id());
            let newest = known.entry(member.id().node).or_insert(entry);
            if entry.1.run >= newest.1.run {
                *newest = entry;
            }
        }
        known
    }

    fn announce(&mut self, now: Duration) {
        let known = self.known();
        let alive =
            |node: &NodeId| known.get(node).is_some_and(|(state, _)| !matches!(state, State::Down));
        let silent: Vec<Identity> = self
            .contacts
            .keys()
            .filter(|node| !alive(node))
            .map(|node| {
                known.get(node).map_or(Identity { node: *node, run: 0 }, |(_, identity)| *identity)
            })
            .collect();
        self.announce_at = now + if silent.is_empty() { SWEEP_PERIOD } else { ANNOUNCE_PERIOD };
        let first = if silent.is_empty() { 0 } else { self.timer_count as usize % silent.len() };
        self.timer_count += 1;
        let turn = silent.iter().cycle().skip(first).take(silent.len().min(ANNOUNCE_CONTACTS_MAX));
        for contact in turn {
            if let Err(error) = self.act(now, |foca, runtime| foca.announce(*contact, runtime)) {
                tracing::debug!(%error, "announcement");
            }
        }
    }

    fn next_due(&self) -> Option<Duration> {
        let timer = self.timers.first_key_value().map(|((due, _), _)| *due);
        let announce = (!self.contacts.is_empty()).then_some(self.announce_at);
        timer.into_iter().chain(announce).min()
    }

    fn act(
        &mut self,
        now: Duration,
        step: impl FnOnce(&mut Foca<Identity, Codec, SplitMix, Loads>, &mut Effects) -> FocaResult,
    ) -> FocaResult {
        let mut effects = Effects::default();
        let result = step(&mut self.foca, &mut effects);
        for (after, timer) in effects.timers {
            self.timer_count += 1;
            self.timers.insert((due(now, after), self.timer_count), timer);
        }
        self.outgoing.extend(effects.outgoing);
        let mut newcomers = false;
        for note in effects.notes {
            newcomers |=
                matches!(note, OwnedNotification::MemberUp(_) | OwnedNotification::Rename(_, _));
            if matches!(note, OwnedNotification::MemberDown(_)) {
                self.announce_at = self.announce_at.min(now + ANNOUNCE_PERIOD);
            }
            tracing::debug!(?note, "gossip");
        }
        // Who has just come has missed what this node told of its load.
        if newcomers && self.own_load.sequence > 0 {
            self.report(self.own_load);
        }
        result
    }
}

/// A packet that tells a member how it is held here, and nothing else.
fn warning(own: Identity, suspect: &foca::Member<Identity>) -> Result<Bytes, CodecError> {
    let header = foca::Header {
        src: own,
        // The oldest: it changes nothing of what is known of this node.
        src_incarnation: 0,
        dst: *suspect.id(),
        message: foca::Message::Gossip,
    };
    let mut packet = Vec::new();
    foca::Codec::encode_header(&mut Codec, &header, &mut packet)?;
    packet.put_u16(1);
    foca::Codec::encode_member(&mut Codec, suspect, &mut packet)?;
    Ok(packet.into())
}

type FocaResult = Result<(), foca::Error>;

fn config(timings: Timings) -> foca::Config {
    foca::Config {
        probe_period: timings.period,
        probe_rtt: timings.timeout.min(timings.period / 2),
        num_indirect_probes: INDIRECT_PROBES,
        max_transmissions: UPDATE_TRANSMISSIONS,
        suspect_to_down_after: timings.suspicion,
        remove_down_after: Some(REMOVE_DOWN_AFTER),
        max_packet_size: NonZeroUsize::new(PACKET_SIZE_MAX).unwrap_or(NonZeroUsize::MIN),
        notify_down_members: true,
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(foca::PeriodicParams {
            // The same as that of the probes: one wake-up serves both.
            frequency: timings.period,
            num_members: INDIRECT_PROBES,
        }),
    }
}

/// A clock that counts only while this daemon runs.
struct RunningClock {
    start: Duration,
    lost: Duration,
    /// The due time that a grace was already given for: one each, so time always moves on.
    forgiven: Option<Duration>,
}

impl RunningClock {
    fn new(now: Duration) -> Self {
        Self { start: now, lost: Duration::ZERO, forgiven: None }
    }

    fn read(&self, outer: Duration) -> Duration {
        outer.saturating_sub(self.start).saturating_sub(self.lost)
    }

    fn to_outer(&self, inner: Duration) -> Duration {
        inner + self.start + self.lost
    }

    /// After a stall, what was due becomes due `GRACE` or a little more from now: the answers that
    /// lie in our sockets come first.
    fn discount_lateness(&mut self, due: Duration, outer: Duration) {
        let late = self.read(outer).saturating_sub(due);
        if late > LATENESS_MAX && self.forgiven != Some(due) {
            // By whole slots, so that timers keep to them.
            self.lost += to_slot(late + GRACE);
            self.forgiven = Some(due);
        }
    }
}

#[derive(Default)]
struct Effects {
    outgoing: Vec<Outgoing>,
    timers: Vec<(Duration, foca::Timer<Identity>)>,
    notes: Vec<OwnedNotification<Identity>>,
}

impl foca::Runtime<Identity> for Effects {
    fn notify(&mut self, notification: foca::Notification<'_, Identity>) {
        self.notes.push(notification.to_owned());
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.outgoing.push(Outgoing { to: to.node, packet: Bytes::copy_from_slice(data) });
    }

    fn submit_after(&mut self, event: foca::Timer<Identity>, after: Duration) {
        self.timers.push((after, event));
    }
}

/// Randomness for the choice of whom to probe: reproducible, not secret.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl rand_core::TryRng for SplitMix {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.next() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.next())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
        Ok(())
    }
}
