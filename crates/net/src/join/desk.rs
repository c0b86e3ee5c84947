//! The server's side of a join.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use unum_proto::cluster::{
    JoinAccepted, JoinRefusalKind, JoinRefused, JoinReply, JoinRequest, join_reply::Outcome,
};

use crate::limits::{
    JOIN_BURST_MAX, JOIN_MESSAGE_SIZE_MAX, JOIN_RATE_PER_SECOND, JOIN_TIMEOUT, PROTOCOL_VERSION,
};

pub type JoinFuture = Pin<Box<dyn Future<Output = Result<JoinAccepted, JoinRefused>> + Send>>;

/// Decides who may join: looks the token up, checks the secret's hash, has a certificate signed.
pub trait JoinDesk: Send + Sync + 'static {
    fn join(&self, from: SocketAddr, request: JoinRequest) -> JoinFuture;
}

/// A token bucket: guessing of tokens is slow, and joins cannot crowd out anything else.
#[derive(Debug)]
pub(crate) struct JoinLimiter {
    bucket: Mutex<(f64, Instant)>,
}

impl JoinLimiter {
    pub(crate) fn new(now: Instant) -> Self {
        JoinLimiter { bucket: Mutex::new((f64::from(JOIN_BURST_MAX), now)) }
    }

    fn admit(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let (level, since) = *bucket;
        let refill = now.saturating_duration_since(since).as_secs_f64();
        let level =
            (level + refill * f64::from(JOIN_RATE_PER_SECOND)).min(f64::from(JOIN_BURST_MAX));
        let admitted = level >= 1.0;
        *bucket = (if admitted { level - 1.0 } else { level }, now);
        admitted
    }
}

/// Serves one join over a TLS stream that is through its handshake.
pub(crate) async fn serve_join<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    from: SocketAddr,
    desk: Arc<dyn JoinDesk>,
    limiter: &JoinLimiter,
) {
    let served = tokio::time::timeout(JOIN_TIMEOUT, async {
        let outcome = match receive(&mut stream).await {
            Ok(_) if !limiter.admit(Instant::now()) => Err(refused(
                JoinRefusalKind::TooMany,
                "too many machines ask to join at once; try again in some seconds",
            )),
            Ok(request) => desk.join(from, request).await,
            Err(why) => Err(refused(JoinRefusalKind::BadRequest, &why)),
        };
        match &outcome {
            Ok(accepted) => tracing::info!("{from} joins as node {}", accepted.node),
            Err(refused) => tracing::warn!("refused the join of {from}: {}", refused.message),
        }
        let outcome = match outcome {
            Ok(accepted) => Outcome::Accepted(accepted),
            Err(refused) => Outcome::Refused(refused),
        };
        send(&mut stream, &JoinReply { outcome: Some(outcome) }).await
    });
    match served.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("the join of {from} broke off: {error}"),
        Err(_) => tracing::warn!("the join of {from} took longer than {JOIN_TIMEOUT:?}"),
    }
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Result<JoinRequest, String> {
    let bytes = read_message(stream).await.map_err(|e| e.to_string())?;
    let request = JoinRequest::decode(bytes.as_slice()).map_err(|e| e.to_string())?;
    if request.version != PROTOCOL_VERSION {
        return Err(format!(
            "the joining machine speaks protocol {}, the cluster {PROTOCOL_VERSION}",
            request.version
        ));
    }
    Ok(request)
}

fn refused(kind: JoinRefusalKind, message: &str) -> JoinRefused {
    JoinRefused { kind: kind.into(), message: message.to_owned() }
}

/// A message after its length (4 bytes, little-endian).
pub(super) async fn read_message<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u32_le().await? as usize;
    if length > JOIN_MESSAGE_SIZE_MAX {
        let why = format!("a join message of {length} bytes exceeds {JOIN_MESSAGE_SIZE_MAX}");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

pub(super) async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    message: &impl Message,
) -> std::io::Result<()> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    bytes.extend_from_slice(&message.encode_to_vec());
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    tokio::time::timeout(Duration::from_secs(1), stream.shutdown()).await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_are_limited_in_rate() {
        let start = Instant::now();
        let limiter = JoinLimiter::new(start);
        let burst = (0..100).filter(|_| limiter.admit(start)).count();
        assert_eq!(burst, JOIN_BURST_MAX as usize);
        let later = start + Duration::from_secs(1);
        let refilled = (0..100).filter(|_| limiter.admit(later)).count();
        assert_eq!(refilled, JOIN_RATE_PER_SECOND as usize);
    }
}
