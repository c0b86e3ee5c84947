//! The times that an operator, or a test in a hurry, may want otherwise.

use std::time::Duration;

use tokio::time::Instant;

use crate::Departures;

#[derive(Clone, Debug)]
pub struct Settings {
    /// A control connection with calls pending on which nothing was heard for so long is dead.
    pub dead_peer: Duration,
    /// The same for bulk connections, where a large message may be on its way.
    pub dead_peer_bulk: Duration,
    /// Idle connections are pinged so often; a server drops one that it did not hear for four times that.
    pub idle_ping: Duration,
    /// How long after its certificate's end a peer may still start calls on an old connection.
    pub certificate_grace: Duration,
    /// How long calls may go on running on a connection that takes no new ones.
    pub drain: Duration,
    /// Connections are looked at on a grid that begins here, so that looking at all of them is one
    /// wake-up.
    pub grid: Instant,
    /// What everything passes that leaves for other nodes.
    pub departures: Departures,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            dead_peer: Duration::from_millis(1600),
            dead_peer_bulk: Duration::from_secs(6),
            idle_ping: Duration::from_secs(15),
            certificate_grace: Duration::from_secs(60),
            drain: Duration::from_secs(3600),
            grid: Instant::now(),
            departures: Departures::default(),
        }
    }
}
