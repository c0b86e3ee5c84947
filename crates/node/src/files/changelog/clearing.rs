//! Getting every write lease out of a volume.
//!
//! It is done for what concerns a whole volume at one moment. Nodes at work would take their leases again at once,
//! so each that is asked leaves all inodes alone for a while, as it does with single ones that others want, too.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use unum_core::tree::TreeError;
use unum_net::{CallOptions, Name};
use unum_proto::file::GiveBack;
use unum_proto::ids::{NodeId, VolumeId};

use super::holding::{ASK_AGAIN, GIVE_BACK_TIME, GiveBackMethod, Wanted};
use super::{ChangeLog, left};
use crate::files::errno::FileError;

impl ChangeLog {
    /// Returns once no node has a write lease on anything in the volume as far as this node knows.
    pub async fn clear(&self, volume: VolumeId, deadline: Instant) -> Result<(), FileError> {
        loop {
            let holders = self.parts.registry.read(|state| state.tree().holders_in(volume));
            if holders.is_empty() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Err(TreeError::Held.into());
            }
            join_all(holders.into_iter().map(|holder| self.clear_one(holder, deadline))).await;
        }
    }

    /// Who does not answer is asked again, or declared down meanwhile.
    async fn clear_one(&self, holder: NodeId, deadline: Instant) {
        let until = deadline.min(Instant::now() + GIVE_BACK_TIME);
        let given = match holder == self.parts.node {
            true => self.give_back(Wanted::All, until).await.map_err(|error| error.to_string()),
            false => {
                let options = CallOptions::until(until).fail_fast();
                let request = GiveBack { inodes: Vec::new(), all: true };
                let given = self
                    .parts
                    .client
                    .call::<GiveBackMethod>(&Name::Node(holder), request, &options)
                    .await;
                given.map(|reply| reply.index).map_err(|error| error.to_string())
            }
        };
        let seen = match given {
            Ok(index) => {
                let reached = self.parts.registry.reached(index, left(deadline)).await;
                reached.map_err(|error| error.to_string())
            }
            Err(why) => Err(why),
        };
        if let Err(why) = seen {
            tracing::debug!(%holder, why, "a write lease is not given back yet");
            sleep(ASK_AGAIN).await;
        }
    }
}
